// Requests: they arrive at queues, ranks take them, carry them along with messages, answer them.
#include <algorithm>

#include "engine.h"

namespace leeboard::sim {

// The queue's next request comes, if there is one: `from` is when the one before came, or when a
// client got its answer.
void Engine::issue(uint32_t queue, Time from) {
  const Queue& source = program_.queues[queue];
  QueueState& state = queues_[queue];
  if (state.issued == source.count) return;
  Time at = 0;
  switch (source.kind) {
    case Queue::Kind::kTimes:
      at = source.times[state.issued];
      break;
    case Queue::Kind::kPoisson:
    case Queue::Kind::kClosed:
      at = from + from_seconds(source.mean > 0.0 ? state.random.exponential(source.mean) : 0.0);
      break;
  }
  ++state.issued;
  outcome_.requests.push_back({queue, at, kNever, kNever});
  push(EventKind::kArrival, outcome_.requests.size() - 1, at);
}

void Engine::arrive(uint32_t request) {
  const uint32_t queue = outcome_.requests[request].queue;
  QueueState& state = queues_[queue];
  if (program_.queues[queue].kind != Queue::Kind::kClosed) issue(queue, now_);
  if (state.takers.empty()) {
    state.waiting.push_back(request);
    return;
  }
  const uint32_t taker = state.takers.front();
  state.takers.pop_front();
  outcome_.requests[request].taken = now_;
  ranks_[processes_[taker].rank].request = request;
  resolve_process(taker, 0, now_, kNoRecord);
  if (++state.taken == program_.queues[queue].count) release_takers(queue);
}

void Engine::release_takers(uint32_t queue) {
  for (const uint32_t taker : queues_[queue].takers) {
    processes_[taker].released = true;
    resolve_process(taker, 0, now_, kNoRecord);
  }
  queues_[queue].takers.clear();
}

bool Engine::take(uint32_t index, const Op& op) {
  if (!in_step(index)) return false;
  Process& p = processes_[index];
  const auto queue = static_cast<uint32_t>(op.tag);
  QueueState& state = queues_[queue];
  if (!state.waiting.empty()) {
    const uint32_t request = state.waiting.front();
    state.waiting.pop_front();
    outcome_.requests[request].taken = now_;
    ranks_[p.rank].request = request;
    if (++state.taken == program_.queues[queue].count) release_takers(queue);
    return true;
  }
  if (state.taken == program_.queues[queue].count) {
    leave_loop(p, op);
    return true;
  }
  state.takers.push_back(index);
  p.pending[0] = 1;
  return block(index, 0);
}

void Engine::leave_loop(Process& p, const Op& op) {
  if (op.b == kUnknown) {
    throw std::runtime_error("rank " + std::to_string(p.rank) + " takes a request of queue " +
                             std::to_string(op.tag) + ", which has run dry");
  }
  p.pc = op.b + 1;
  p.loops.pop_back();
}

bool Engine::answer(uint32_t index, const Op& op) {
  const auto queue = static_cast<uint32_t>(op.tag);
  const bool closed = program_.queues[queue].kind == Queue::Kind::kClosed;
  // The client who has its answer first asks first.
  if (closed && !in_step(index)) return false;
  Process& p = processes_[index];
  uint32_t& held = ranks_[p.rank].request;
  if (held == kNil || outcome_.requests[held].queue != queue ||
      outcome_.requests[held].done != kNever) {
    throw std::runtime_error("rank " + std::to_string(p.rank) + " answers a request of queue " +
                             std::to_string(queue) + " and works on none");
  }
  outcome_.requests[held].done = p.clock;
  held = kNil;
  record(p, RecordKind::kDone, p.clock, p.last, 0, -1, op.tag);
  if (closed) issue(queue, p.clock);
  return true;
}

}  // namespace leeboard::sim
