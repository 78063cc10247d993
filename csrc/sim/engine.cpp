#include "engine.h"

#include <algorithm>

#include "flow.h"

namespace leeboard::sim {
namespace {

uint64_t event(uint8_t kind, uint64_t data) { return (uint64_t{kind} << 56) | data; }

}  // namespace

Engine::Engine(const Program& program, const Platform& platform, Options options)
    : program_(program),
      platform_(platform),
      options_(std::move(options)),
      routes_(platform),
      timeline_(options_.records) {
  if (options_.bins > 0) {
    usage_ = std::make_unique<Usage>(2 * platform.links.size(), options_.bins);
  }
  if (options_.network == NetworkModel::kFlow) {
    network_ = std::make_unique<FlowNetwork>(platform_, routes_, *this, usage_.get());
  } else {
    auto alpha_beta = std::make_unique<AlphaBeta>(platform_, routes_, *this, usage_.get());
    alpha_beta_ = alpha_beta.get();
    network_ = std::move(alpha_beta);
  }
  load();
}

Engine::~Engine() = default;

Outcome Engine::run() {
  attempt([&] {
    begin_all();
    loop();
    conclude();
  });
  return std::move(outcome_);
}

// Whether it went well; if not, the outcome tells.
bool Engine::attempt(const std::function<void()>& work) {
  try {
    work();
    return true;
  } catch (const Mismatch& mismatch) {
    outcome_.status = Status::kMismatch;
    outcome_.message = mismatch.what();
  } catch (const Interrupted& interrupted) {
    if (live_ == nullptr) throw;
    outcome_.status = Status::kError;
    outcome_.message = interrupted.what();
  } catch (const std::exception& error) {
    outcome_.status = Status::kError;
    outcome_.message = error.what();
  }
  return false;
}

void Engine::begin_all() {
  for (uint32_t rank = 0; rank < program_.ranks(); ++rank) {
    queue_.push(0, event(static_cast<uint8_t>(EventKind::kResume), rank));
  }
}

// To the end, or until a rank has no more ops.
void Engine::loop() {
  while (running_ > 0 || in_flight_ > 0) {
    const bool leaving = queue_.empty() || queue_.next_time() > now_;
    if (dirty_ && leaving) {
      dirty_ = false;
      network_->settle(now_);
      continue;
    }
    if (queue_.empty()) break;
    const auto next = queue_.pop();
    if (next.time < now_) throw std::logic_error("an event before the present");
    now_ = next.time;
    ++outcome_.events;
    note(next.time, next.data);
    handle(next.data);
    if (++steps_ >= kCheckEvery) {
      steps_ = 0;
      if (options_.interrupted && options_.interrupted()) throw Interrupted();
    }
    if (starved_ != kNil) return;
  }
  // What the last messages carried is booked.
  if (dirty_) network_->settle(now_);
}

void Engine::handle(uint64_t data) {
  const uint64_t value = data & ((uint64_t{1} << 56) - 1);
  const auto index = static_cast<uint32_t>(value);
  switch (static_cast<EventKind>(data >> 56)) {
    case EventKind::kResume:
      // What a blocked process waited for sets its clock, when that is closed.
      if (!processes_[index].blocked) {
        processes_[index].clock = std::max(processes_[index].clock, now_);
      }
      return advance(index);
    case EventKind::kStart:
      return leave(index);
    case EventKind::kInbox:
      return arrive_in_inbox(index);
    case EventKind::kNetwork:
      dirty_ = true;
      return network_->on_timer(value, now_);
    case EventKind::kArrival:
      return arrive(index);
    case EventKind::kLinkChange: {
      const auto& changes = platform_.link_changes;
      dirty_ = true;
      network_->set_factor(changes[value].index, changes[value].factor, now_);
      if (value + 1 < changes.size()) {
        push(EventKind::kLinkChange, value + 1, changes[value + 1].at);
      }
      return;
    }
  }
}

void Engine::push(EventKind kind, uint64_t value, Time at) {
  queue_.push(within(at), event(static_cast<uint8_t>(kind), value));
}

void Engine::schedule(Time at, uint64_t data) { push(EventKind::kNetwork, data, at); }

void Engine::note(uint64_t a, uint64_t b) {
  outcome_.hash = mix(outcome_.hash ^ (a * 0x9e3779b97f4a7c15 + mix(b)));
}

// Runs a process until it blocks, ends, or is ahead of what it must do in step with the others.
void Engine::advance(uint32_t index) {
  for (;;) {
    Process& p = processes_[index];
    if (p.op == nullptr && !fetch(p)) return;
    if (!execute(index)) return;
    end(processes_[index]);
    if (++steps_ >= kCheckEvery) {
      steps_ = 0;
      if (options_.interrupted && options_.interrupted()) throw Interrupted();
      // A loop of compute alone never comes back to the queue.
      within(processes_[index].clock);
    }
  }
}

bool Engine::fetch(Process& p) {
  if (p.stream != 0) {
    auto& items = items_[p.items];
    if (items.empty()) {
      p.finished = true;
      --running_;
      auto& totals = outcome_.ranks[p.rank];
      totals.finish = std::max(totals.finish, within(p.clock));
      if (p.sync_waiter != kNil) {
        const uint32_t waiter = p.sync_waiter;
        p.sync_waiter = kNil;
        resolve_process(waiter, 0, p.clock, p.last);
      }
      return false;
    }
    p.item = items.front();
    items.pop_front();
    p.op = p.item.op;
    if (p.item.request != kKnown) p.request = p.item.request;
    return true;
  }
  while (p.pc == p.end) {
    if (p.return_end == 0) {
      if (live_ != nullptr) {
        if (feed(p)) continue;
        if (starved_ != kNil) return false;
      }
      p.finished = true;
      --running_;
      auto& totals = outcome_.ranks[p.rank];
      totals.finish = std::max(totals.finish, within(p.clock));
      return false;
    }
    p.pc = p.return_pc;
    p.end = p.return_end;
    p.return_end = 0;
  }
  p.op = p.code + p.pc++;
  return true;
}

// The current op is over: whoever waits for its request may go on.
void Engine::end(Process& p) {
  const Op& op = *p.op;
  p.op = nullptr;
  p.begun = false;
  if (p.stream != 0 && op.slot >= 0 && op.kind != OpKind::kWait) {
    resolve({p.rank, op.slot, 0, Endpoint::Kind::kSlot}, p.clock, p.last, kNil);
  }
}

// True when the current op is over, at the process's clock.
bool Engine::execute(uint32_t index) {
  Process& p = processes_[index];
  if (!p.begun) return begin(index);
  if (p.op->kind == OpKind::kCollective) return run_rounds(index);
  if (p.op->kind == OpKind::kSleep) return in_step(index);
  return finish_wait(index);
}

bool Engine::begin(uint32_t index) {
  Process& p = processes_[index];
  const Op& op = *p.op;
  // A mark takes nothing, not even a device that is up.
  const bool works = op.kind != OpKind::kMark;
  if (works && !devices_[ranks_[p.rank].device].steady() && !up(p)) return false;
  const bool communicates_beside = op.kind == OpKind::kCollective && op.slot >= 0;
  if (p.stream == 0 && (op.stream != 0 || communicates_beside)) return launch(index, op);
  switch (op.kind) {
    case OpKind::kCompute:
    case OpKind::kDelay:
    case OpKind::kRandom:
      return compute_op(index, op);
    case OpKind::kSend:
      return send(index, op);
    case OpKind::kRecv:
      return receive(index, op);
    case OpKind::kWait:
      return wait(index, op);
    case OpKind::kSync:
      return sync(index, op);
    case OpKind::kCollective:
      return join(index, op);
    case OpKind::kLoop:
      if (op.a == 0) {
        p.pc = op.b + 1;
      } else {
        p.loops.push_back({p.pc, op.a - 1});
      }
      return true;
    case OpKind::kLoopEnd: {
      LoopFrame& frame = p.loops.back();
      if (frame.left == 0) {
        p.loops.pop_back();
      } else {
        --frame.left;
        p.pc = frame.begin;
      }
      return true;
    }
    case OpKind::kMark:
      record(p, RecordKind::kMark, p.clock, p.last, 0, -1, static_cast<int32_t>(op.a));
      if (ranks_[p.rank].marked) {
        outcome_.marks.push_back({p.rank, static_cast<uint32_t>(op.a), p.clock});
      }
      return true;
    case OpKind::kCall:
      p.return_pc = p.pc;
      p.return_end = p.end;
      p.pc = op.a;
      p.end = op.b;
      return true;
    case OpKind::kAlloc:
      allocate(p, op.a);
      return true;
    case OpKind::kFree: {
      uint64_t& in_use = outcome_.ranks[p.rank].memory;
      if (op.a > in_use) {
        throw std::runtime_error("rank " + std::to_string(p.rank) + " frees " +
                                 std::to_string(op.a) + " bytes and holds " +
                                 std::to_string(in_use));
      }
      in_use -= op.a;
      memory_[ranks_[p.rank].device] -= op.a;
      return true;
    }
    case OpKind::kTake:
      return take(index, op);
    case OpKind::kDone:
      return answer(index, op);
    case OpKind::kSleep:
      return sleep(index, op);
    case OpKind::kSignal:
      return signal(index, op);
    case OpKind::kAwait:
      return await(index);
  }
  throw std::logic_error("an op of unknown kind");
}

// Whether the process is at the present; if it is ahead, it comes back when the present gets there.
bool Engine::in_step(uint32_t index) {
  const Process& p = processes_[index];
  if (p.clock <= now_) return true;
  push(EventKind::kResume, index, p.clock);
  return false;
}

// Hands an op to another stream of the rank.
bool Engine::launch(uint32_t index, const Op& op) {
  if (!in_step(index)) return false;
  const uint32_t rank = processes_[index].rank;
  uint32_t ticket = kNil;
  if (op.kind == OpKind::kWait) {
    ticket = tickets_.make();
    Slot& slot = slot_of(rank, op.slot);
    if (slot.state == Slot::State::kResolved) {
      tickets_[ticket].at = slot.at;
      tickets_[ticket].record = slot.record;
      tickets_[ticket].request = slot.request;
      tickets_[ticket].resolved = true;
    } else {
      tickets_[ticket].next = slot.ticket;
      slot.ticket = ticket;
    }
  } else if (op.slot >= 0) {
    open_slot(rank, op);
  }
  const uint32_t number = op.kind == OpKind::kCollective ? count_collective(rank, op) : 0;
  // Collectives that are not waited for have a stream of their own for each group.
  const int32_t stream = op.stream != 0 ? op.stream : 256 + op.tag;
  const uint32_t other = stream_of(index, stream);
  Process& p = processes_[other];
  const uint32_t works_on = ranks_[rank].request;
  items_[p.items].push_back({&op, ticket, number, works_on == p.told ? kKnown : works_on});
  p.told = works_on;
  if (p.finished) {
    p.finished = false;
    ++running_;
    if (p.clock < now_) p.last = processes_[index].last;
    push(EventKind::kResume, other, now_);
  }
  return true;
}

uint32_t Engine::stream_of(uint32_t thread, int32_t stream) {
  for (uint32_t i = processes_[thread].next_stream; i != kNil; i = processes_[i].next_stream) {
    if (processes_[i].stream == stream) return i;
  }
  Process process;
  process.rank = processes_[thread].rank;
  process.stream = stream;
  process.finished = true;
  process.items = static_cast<uint32_t>(items_.size());
  process.next_stream = processes_[thread].next_stream;
  items_.emplace_back();
  processes_.push_back(std::move(process));
  processes_[thread].next_stream = static_cast<uint32_t>(processes_.size() - 1);
  return processes_[thread].next_stream;
}

}  // namespace leeboard::sim
