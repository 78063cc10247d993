// Waiting, and what ends it.
#include <algorithm>

#include "engine.h"

namespace leeboard::sim {

// Waits until nothing is pending on a lane; true if that is so now.
bool Engine::block(uint32_t index, uint32_t lane) {
  Process& p = processes_[index];
  p.begun = true;
  p.since = p.clock;
  p.lane = lane;
  p.busy = devices_[ranks_[p.rank].device].busy_until(p.clock);
  p.blocked = p.pending[lane] > 0;
  return !p.blocked;
}

// What the process waited for has happened: its clock moves there.
void Engine::close(Process& p) {
  const uint32_t lane = p.lane;
  p.blocked = false;
  if (p.resume_at[lane] > p.clock) {
    p.clock = p.resume_at[lane];
    if (p.cause[lane] != kNoRecord) p.last = p.cause[lane];
  }
  p.resume_at[lane] = 0;
  p.cause[lane] = kNoRecord;
}

bool Engine::finish_wait(uint32_t index) {
  Process& p = processes_[index];
  const Op& op = *p.op;
  // It comes back before its time only where the wait was over when it began.
  close(p);
  if (p.inherit != kNil) {
    ranks_[p.rank].request = p.inherit;
    if (p.stream != 0) p.request = p.told = p.inherit;
    p.inherit = kNil;
  }
  if (op.kind == OpKind::kTake) {
    if (p.clock > p.since) record(p, RecordKind::kTake, p.since, p.last, 0, -1, op.tag);
    if (p.released) {
      p.released = false;
      leave_loop(p, op);
    }
    return true;
  }
  if (p.clock > p.since) {
    account(p);
    RecordKind kind = RecordKind::kWait;
    if (op.kind == OpKind::kSend) kind = RecordKind::kSend;
    if (op.kind == OpKind::kRecv) kind = RecordKind::kRecv;
    if (op.kind == OpKind::kSync) kind = RecordKind::kSync;
    const bool moves = op.kind == OpKind::kSend || op.kind == OpKind::kRecv;
    record(p, kind, p.since, p.last, moves && op.a != kUnknown ? op.a : 0, op.peer, op.tag);
  }
  return true;
}

bool Engine::sleep(uint32_t index, const Op& op) {
  Process& p = processes_[index];
  const Time start = p.clock;
  p.clock = within(start + op.a);
  p.begun = true;
  if (op.a > 0) record(p, RecordKind::kSleep, start, p.last);
  return in_step(index);
}

bool Engine::signal(uint32_t index, const Op& op) {
  if (!in_step(index)) return false;
  const auto target = static_cast<uint32_t>(op.peer);
  const Time at = within(now_ + op.a);
  if (!ranks_[target].awaiting) {
    signals_[target].push_back(at);
    return true;
  }
  ranks_[target].awaiting = false;
  resolve_process(target, 0, at, processes_[index].last);
  return true;
}

bool Engine::await(uint32_t index) {
  if (!in_step(index)) return false;
  Process& p = processes_[index];
  if (const auto early = signals_.find(p.rank); early != signals_.end()) {
    p.resume_at[0] = early->second.front();
    early->second.pop_front();
    if (early->second.empty()) signals_.erase(early);
  } else {
    ranks_[p.rank].awaiting = true;
    p.pending[0] = 1;
  }
  return block(index, 0) && finish_wait(index);
}

// Communication that computing on the rank's device does not hide.
void Engine::account(const Process& p) {
  if (p.stream != 0) return;
  const DeviceClock& device = devices_[ranks_[p.rank].device];
  const Time span = p.clock - p.since;
  const Time busy = device.busy_until(p.clock);
  outcome_.ranks[p.rank].communication += span - std::min(span, busy - std::min(busy, p.busy));
}

void Engine::resolve_process(uint32_t index, uint32_t lane, Time at, uint32_t cause) {
  Process& p = processes_[index];
  if (at >= p.resume_at[lane]) {
    p.resume_at[lane] = at;
    p.cause[lane] = cause;
  }
  if (--p.pending[lane] == 0 && p.blocked && p.lane == lane) {
    push(EventKind::kResume, index, std::max(p.resume_at[lane], now_));
  }
}

void Engine::resolve(const Endpoint& endpoint, Time at, uint32_t cause, uint32_t request) {
  if (endpoint.kind == Endpoint::Kind::kNobody) return;
  if (endpoint.kind == Endpoint::Kind::kProcess) {
    if (request != kNil) processes_[endpoint.index].inherit = request;
    return resolve_process(endpoint.index, endpoint.lane, at, cause);
  }
  Slot& slot = slot_of(endpoint.index, endpoint.slot);
  slot.at = at;
  slot.record = cause;
  slot.request = request;
  slot.state = Slot::State::kResolved;
  for (uint32_t ticket = slot.ticket; ticket != kNil;) {
    Ticket& t = tickets_[ticket];
    const uint32_t next = t.next;
    t.at = at;
    t.record = cause;
    t.request = request;
    t.resolved = true;
    t.next = kNil;
    if (t.waiter != kNil) {
      const uint32_t waiter = t.waiter;
      if (request != kNil) processes_[waiter].inherit = request;
      tickets_.release(ticket);
      resolve_process(waiter, 0, at, cause);
    }
    ticket = next;
  }
  slot.ticket = kNil;
  if (slot.waiter != kNil) {
    const uint32_t waiter = slot.waiter;
    slot.waiter = kNil;
    slot.state = Slot::State::kIdle;
    if (request != kNil) processes_[waiter].inherit = request;
    resolve_process(waiter, 0, at, cause);
  }
}

}  // namespace leeboard::sim
