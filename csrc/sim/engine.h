// The discrete-event engine: logical processes run programs over a network, in one global order.
//
// A process (a rank's own thread, or one of its streams) runs ahead of the others on its own clock
// through compute, and comes back to the common order (time, sequence) before it communicates.
// Nothing is ever rolled back, and the same input gives the same events.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "alpha_beta.h"
#include "collective.h"
#include "device_clock.h"
#include "event_queue.h"
#include "live_ops.h"
#include "mailbox.h"
#include "network.h"
#include "platform.h"
#include "program.h"
#include "random.h"
#include "record.h"
#include "route.h"
#include "usage.h"

namespace leeboard::sim {

enum class NetworkModel { kAlphaBeta = 0, kFlow = 1 };

struct Options {
  NetworkModel network = NetworkModel::kFlow;
  uint64_t seed = 0;
  uint64_t records = 0;  // at most; 0: no timeline
  uint32_t bins = 0;     // of link use over time; 0: links are not watched
  // Ranks whose marks go into `Outcome::marks`, with a timeline or without.
  std::vector<uint32_t> marked;
  // Asked now and then; true ends the run with Interrupted.
  std::function<bool()> interrupted;
};

struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("interrupted") {}
};

// Ranks do not agree on a collective.
struct Mismatch : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Status { kDone, kDeadlock, kMismatch, kError };

struct Blocked {
  uint32_t rank;
  uint8_t stream;
  uint32_t op;  // that waits, or whose request is waited for
  Time since;
  // A collective: which of its group, and up to a few ranks that have not come.
  uint32_t number;
  std::vector<uint32_t> missing;
};

struct RankTotals {
  Time finish = 0, compute = 0, communication = 0;
  uint64_t sent = 0, received = 0, memory = 0, peak_memory = 0;
};

struct Request {
  uint32_t queue;
  Time arrived, taken, done;
};

struct OutOfMemory {
  uint32_t rank;
  Time at;
  uint64_t in_use, limit, requested;
};

struct Mark {
  uint32_t rank, name;
  Time at;
};

struct Outcome {
  Status status = Status::kDone;
  std::string message;
  Time makespan = 0;
  uint64_t events = 0, messages = 0, hash = 0;
  // Messages and receives that nobody met.
  uint64_t unmatched = 0;
  std::vector<RankTotals> ranks;
  std::vector<Request> requests;  // in order of arrival
  std::vector<Blocked> blocked;
  std::vector<std::pair<uint32_t, Time>> failed;
  std::vector<OutOfMemory> out_of_memory;
  std::vector<Mark> marks;  // of each rank in its order
};

class Engine final : public NetworkSink {
 public:
  // Both must outlive the engine. Throws std::runtime_error if they do not fit together.
  Engine(const Program& program, const Platform& platform, Options options);
  ~Engine() override;

  // To the end, once.
  Outcome run();

  // engine_live.cpp: ranks whose programs grow while they run. `live` outlives the engine, which
  // has not begun.
  void follow(LiveOps& live);
  // On until a rank has no more ops and is not over: which one. It has got more, or is over, when
  // this is called again. kNil: nothing can go on.
  uint32_t go_on();
  // Of such a run, once.
  Outcome finish();
  Time clock(uint32_t rank) const { return processes_[rank].clock; }
  // Whether what a rank has begun as `slot` is over at the rank's time; all its ops are done.
  bool over(uint32_t rank, int32_t slot) const;
  // A group has been added to the program.
  void enrol(uint32_t group);
  Algorithm choose(const Op& op, uint32_t ranks) const;
  // What the timeline tells of a live rank's ops is counted from the rank's first; from now on from
  // `begin` of it.
  void lay_out(std::span<const uint64_t> begin) { timeline_.lay_out(begin); }
  const Timeline& timeline() const { return timeline_; }
  const Usage* usage() const { return usage_.get(); }

  void delivered(uint32_t message, Time departed, Time arrived) override;
  void schedule(Time at, uint64_t data) override;

 private:
  // Receives of later rounds of a collective may be outstanding beside the round's own.
  static constexpr uint32_t kLanes = 4;
  static constexpr uint64_t kCheckEvery = 1 << 18;

  enum class EventKind : uint8_t {
    kResume,      // process
    kStart,       // message: it leaves now
    kInbox,       // message: it is there to be matched
    kNetwork,     // the network's timer
    kArrival,     // request
    kLinkChange,  // index of the change
  };

  // Whom to tell that something is over.
  struct Endpoint {
    enum class Kind : uint8_t { kNobody, kProcess, kSlot };
    uint32_t index = 0;  // process, or rank
    int32_t slot = kNoSlot;
    uint8_t lane = 0;
    Kind kind = Kind::kNobody;
  };

  struct Message {
    uint32_t source = 0, target = 0;  // ranks
    int32_t tag = 0;
    uint32_t channel = 0;
    uint64_t bytes = 0;
    Endpoint sender, receiver;
    Time ready = 0;  // when the sender offered it; then when it began to leave
    Time arrived = kNever;
    uint32_t sender_record = kNoRecord;
    uint32_t record = kNoRecord;
    uint32_t request = kNil;
    uint32_t op = 0;
    uint32_t next = kNil;
    // Among those of its pair, where these are matched by arrival; else among all.
    uint32_t place = 0;
    bool eager = false, matched = false;
    // Of a receiver's word that waits in its socket: which message waits for it.
    bool word = false;
    uint32_t waits = kNil;
  };

  struct Receive {
    uint32_t source = 0;        // or kNil: any
    int32_t tag = 0;            // or kAny
    uint64_t bytes = kUnknown;  // at most
    Endpoint endpoint;
    Time posted = 0;
    uint32_t op = 0;
    uint32_t record = kNoRecord;
    uint32_t next = kNil;
    uint32_t place = 0;    // among all
    uint32_t word = kNil;  // a message that says so, if that is not there a latency later
  };

  // Of a pair of ranks whose messages are matched by arrival: they enter in the order in which they
  // were sent, though the word of a large one is faster than the bytes of one before it.
  struct Order {
    uint32_t sent = 0, entered = 0;
    std::map<uint32_t, uint32_t> early;  // places to messages
  };

  static uint64_t pair_key(uint32_t source, uint32_t target) {
    return (uint64_t{source} << 32) | target;
  }

  // Matching with wildcards goes by arrival, in lists.
  struct Inbox {
    std::deque<uint32_t> messages, receives;
  };

  struct Slot {
    enum class State : uint8_t { kIdle, kOutstanding, kResolved };
    Time at = 0;
    uint32_t waiter = kNil;  // process
    uint32_t ticket = kNil;  // of streams that wait for it
    uint32_t record = kNoRecord;
    uint32_t request = kNil;
    uint32_t op = 0;  // that opened it
    State state = State::kIdle;
  };

  // A wait that was queued on a stream.
  struct Ticket {
    Time at = kNever;
    uint32_t record = kNoRecord;
    uint32_t request = kNil;
    uint32_t waiter = kNil;
    uint32_t next = kNil;  // of the slot, or of the pool
    bool resolved = false;
  };

  struct LoopFrame {
    uint64_t begin, left;
  };

  static constexpr uint32_t kKnown = kNil - 1;
  struct Item {
    const Op* op;
    uint32_t ticket;   // of a wait
    uint32_t number;   // of a collective
    uint32_t request;  // that the thread works on; kKnown: no other than the stream was told of
  };

  // A rank in a group.
  struct Member {
    uint32_t place;
    uint32_t count;  // collectives so far
  };

  struct Process {
    Time clock = 0;
    Time since = 0;  // when it blocked
    Time resume_at[kLanes] = {};
    uint32_t pending[kLanes] = {};
    uint32_t cause[kLanes] = {kNoRecord, kNoRecord, kNoRecord, kNoRecord};
    uint32_t rank = 0;
    uint32_t last = kNoRecord;    // the record that ends at `clock`
    uint32_t next_stream = kNil;  // of the rank
    uint32_t inherit = kNil;      // the request that came with what it waits for
    int32_t stream = 0;
    const Op* op = nullptr;  // the current one
    Time busy = 0;           // of the device when the process blocked
    uint32_t lane = 0;       // that it blocks on
    bool begun = false;      // the current op
    bool blocked = false;
    bool finished = false;  // a thread's program, or for now a stream
    bool stopped = false;   // its device is down for good
    bool released = false;  // the queue it waited for has run dry
    // Threads.
    const Op* code = nullptr;  // that pc counts in
    uint64_t pc = 0, end = 0, return_pc = 0, return_end = 0;
    std::vector<LoopFrame> loops;
    // Streams.
    uint32_t items = kNil;
    Item item{};
    uint32_t request = kNil;  // that a stream works on
    uint32_t told = kNil;     // which one it was last told of, or told its thread
    uint32_t sync_waiter = kNil;
    // The collective it is in.
    uint32_t instance = kNil, me = 0, rounds = 0;
    uint32_t round = 0, over = 0;  // rounds that have begun, that were waited for
    uint64_t reduced[kLanes] = {};
  };

  struct Rank {
    uint32_t device = 0;
    uint32_t request = kNil;
    uint32_t world_collectives = 0;
    bool wildcard = false;  // it has begun to receive from anywhere or of any tag
    bool shared = false;    // others compute on its device, or its own streams do
    bool failed = false;    // its device is down for good
    bool awaiting = false;  // a signal
    bool marked = false;    // its marks are kept
    RandomStream random;
  };

  struct Instance {
    Schedule schedule;
    const Op* op = nullptr;
    uint32_t group = 0, number = 0;
    uint32_t joined = 0, left = 0;
    std::unique_ptr<Islands> islands;  // schedule points at it
    std::vector<bool> here;
    uint32_t next = kNil;
  };

  struct QueueState {
    std::deque<uint32_t> waiting;  // requests
    std::deque<uint32_t> takers;   // processes
    uint64_t issued = 0, taken = 0;
    RandomStream random;
  };

  // engine.cpp: the loop, and what a thread does next.
  bool attempt(const std::function<void()>& work);
  void begin_all();
  void loop();
  void handle(uint64_t data);
  void note(uint64_t a, uint64_t b);
  void advance(uint32_t process);
  bool fetch(Process& p);
  bool execute(uint32_t process);
  bool begin(uint32_t process);
  void end(Process& p);
  bool launch(uint32_t process, const Op& op);
  bool in_step(uint32_t process);
  bool up(Process& p);
  void stop(Process& p, Time at);
  uint32_t stream_of(uint32_t thread, int32_t stream);
  void push(EventKind kind, uint64_t value, Time at);
  void load();
  void conclude();
  void explain(const Process& p, Blocked& blocked) const;
  uint32_t op_index(const Op* op) const {
    if (op == nullptr) return 0;
    return live_ != nullptr ? LiveOps::index(op) : static_cast<uint32_t>(op - program_.ops.data());
  }
  uint32_t record(Process& p, RecordKind kind, Time start, uint32_t prev, uint64_t bytes = 0,
                  int32_t peer = -1, int32_t tag = 0, uint16_t flags = 0);

  // engine_live.cpp
  bool feed(Process& p);

  // engine_wait.cpp: waiting, and what ends it.
  bool block(uint32_t process, uint32_t lane);
  void close(Process& p);
  bool finish_wait(uint32_t process);
  void resolve(const Endpoint& endpoint, Time at, uint32_t record, uint32_t request);
  void resolve_process(uint32_t process, uint32_t lane, Time at, uint32_t record);
  void account(const Process& p);
  bool sleep(uint32_t process, const Op& op);
  bool signal(uint32_t process, const Op& op);
  bool await(uint32_t process);

  // engine_local.cpp: compute, memory, slots, streams.
  bool compute(Process& p, Time length);
  Time latency(uint32_t source, uint32_t target);
  bool compute_op(uint32_t process, const Op& op);
  void allocate(Process& p, uint64_t bytes);
  bool wait(uint32_t process, const Op& op);
  bool sync(uint32_t process, const Op& op);
  Slot& slot_of(uint32_t rank, int32_t slot);
  void open_slot(uint32_t rank, const Op& op);

  // engine_messages.cpp: matching, protocols.
  bool send(uint32_t process, const Op& op);
  bool receive(uint32_t process, const Op& op);
  void offer(Process& p, uint32_t target, int32_t tag, uint32_t channel, uint64_t bytes,
             const Endpoint& sender, Time ready);
  void expect(uint32_t target, uint32_t source, int32_t tag, uint32_t channel,
              const Receive& receive);
  uint32_t word(uint32_t from, uint32_t to);
  void match(uint32_t message, const Receive& receive);
  void start(uint32_t message, Time at);
  void leave(uint32_t message);

  // engine_inbox.cpp: matching by arrival.
  void open_inbox(uint32_t rank);
  void arrive_in_inbox(uint32_t message);
  void enter(uint32_t message);

  // engine_collectives.cpp
  bool join(uint32_t process, const Op& op);
  bool run_rounds(uint32_t process);
  uint32_t instance_of(const Op& op, uint32_t number);
  uint32_t count_collective(uint32_t rank, const Op& op);
  Member& member_of(uint32_t rank, const Op& op);
  std::string describe(const Op& op) const;
  std::span<const uint64_t> sizes_of(const Op& op, uint32_t ranks) const;

  // engine_fold.cpp: rings of all ranks that nobody watches, without their messages.
  bool can_fold() const;
  bool join_folded(uint32_t process);
  void fold(Instance& instance);
  uint64_t reduced_by(const Schedule& schedule, uint32_t rank, uint32_t round);

  // engine_requests.cpp
  bool take(uint32_t process, const Op& op);
  void leave_loop(Process& p, const Op& op);
  bool answer(uint32_t process, const Op& op);
  void arrive(uint32_t request);
  void issue(uint32_t queue, Time from);
  void release_takers(uint32_t queue);

  const Program& program_;
  const Platform& platform_;
  Options options_;
  Outcome outcome_;
  Time now_ = 0;
  EventQueue queue_;
  Routes routes_;
  std::unique_ptr<Usage> usage_;
  std::unique_ptr<Network> network_;
  AlphaBeta* alpha_beta_ = nullptr;  // the network, if it is one
  bool dirty_ = false;               // the network heard something at now_
  Timeline timeline_;

  std::vector<Process> processes_;  // the first are the ranks' threads
  std::vector<Rank> ranks_;
  std::vector<DeviceClock> devices_;
  std::vector<uint64_t> memory_;  // in use, by device
  std::vector<bool> reported_;    // ranks that ran out of memory
  std::vector<std::vector<Slot>> slots_;
  std::deque<std::deque<Item>> items_;
  Pool<Message> messages_;
  Pool<Receive> receives_;
  Pool<Ticket> tickets_;
  Mailbox mailbox_;
  std::unordered_map<uint32_t, Inbox> inboxes_;
  std::unordered_map<uint64_t, Order> orders_;  // source << 32 | target
  uint32_t sends_ = 0, posts_ = 0;
  // Of ranks that were told before they asked: when they may go on.
  std::unordered_map<uint32_t, std::deque<Time>> signals_;
  std::deque<Instance> instances_;
  uint32_t free_instance_ = kNil;
  std::unordered_map<uint64_t, uint32_t> instance_index_;  // group << 32 | number
  std::unordered_map<uint64_t, Member> membership_;        // rank << 32 | group
  std::vector<QueueState> queues_;
  std::vector<Change> device_changes_;  // by device
  Round round_, uneven_;
  bool can_fold_ = false;
  std::vector<Time> entered_;  // by rank: when it came to the collective that is folded
  // Of each pair of ranks, under jitter or loss: when its last message came in.
  std::unordered_map<uint64_t, Time> last_arrival_;
  uint64_t steps_ = 0;
  uint64_t in_flight_ = 0;
  uint32_t running_ = 0;  // threads, and streams that have work
  LiveOps* live_ = nullptr;
  uint32_t starved_ = kNil;  // the rank whose ops have come to an end, for now
  bool begun_ = false, stuck_ = false;
};

}  // namespace leeboard::sim
