// What a rank does without a message: compute, memory, waiting for requests and streams.
#include <algorithm>

#include "engine.h"

namespace leeboard::sim {

uint32_t Engine::record(Process& p, RecordKind kind, Time start, uint32_t prev, uint64_t bytes,
                        int32_t peer, int32_t tag, uint16_t flags) {
  if (!timeline_.on()) return kNoRecord;
  const auto stream = static_cast<uint8_t>(std::min(p.stream, int32_t{255}));
  const uint32_t made = timeline_.add(
      {start, p.clock, bytes, 0, prev, p.rank, peer, op_index(p.op), tag, kind, stream, flags});
  if (made != kNoRecord) p.last = made;
  return made;
}

// A device that is down holds its ranks; one that is down for good stops them.
bool Engine::up(Process& p) {
  Time stopped = 0;
  const Time at = devices_[ranks_[p.rank].device].up_from(p.clock, &stopped);
  if (at == kNever) {
    stop(p, std::max(stopped, p.clock));
    return false;
  }
  p.clock = at;
  return true;
}

// A rank has failed once its thread or one of its streams has.
void Engine::stop(Process& p, Time at) {
  Rank& rank = ranks_[p.rank];
  Time& stopped = devices_[rank.device].stopped;
  stopped = std::min(stopped, at);
  p.stopped = true;
  p.clock = at;
  --running_;
  Time& finish = outcome_.ranks[p.rank].finish;
  finish = std::max(finish, at);
  if (rank.failed) return;
  rank.failed = true;
  outcome_.failed.emplace_back(p.rank, at);
  record(p, RecordKind::kStopped, at, p.last);
}

bool Engine::compute_op(uint32_t index, const Op& op) {
  Process& p = processes_[index];
  Rank& rank = ranks_[p.rank];
  // Work of others on the device comes first if it came first.
  if (rank.shared && !in_step(index)) return false;
  const Device& device = platform_.devices[rank.device];
  double seconds = 0.0;
  if (op.kind == OpKind::kCompute) {
    seconds = roofline_seconds(platform_, device, op.flags, static_cast<double>(op.a),
                               static_cast<double>(op.b));
  } else if (op.kind == OpKind::kDelay) {
    seconds = to_seconds(op.a);
  } else {
    const double mean = to_seconds(op.a);
    switch (static_cast<Draw>(op.flags)) {
      case Draw::kExponential:
        seconds = rank.random.exponential(mean);
        break;
      case Draw::kLognormal:
        seconds = mean * rank.random.lognormal(static_cast<double>(op.b) * 1e-6);
        break;
      case Draw::kUniform:
        seconds = mean + to_seconds(op.b) * (2.0 * rank.random.uniform() - 1.0);
        break;
    }
  }
  if (device.jitter > 0.0) seconds *= rank.random.lognormal(device.jitter);
  // Whole picoseconds pass through unrounded.
  const bool exact = op.kind == OpKind::kDelay && device.speed == 1.0 && device.jitter == 0.0;
  const Time length = exact ? op.a : from_seconds(seconds / device.speed);
  return compute(p, length + device.overhead);
}

// False if the device stops before it is done.
bool Engine::compute(Process& p, Time length) {
  DeviceClock& device = devices_[ranks_[p.rank].device];
  const Time start = std::max(p.clock, device.free);
  const uint32_t prev = device.free > p.clock ? device.last_record : p.last;
  Time stopped = 0;
  // One less than the longest: the sum of both fits.
  within(start + 1);
  const Time end = device.finish(start, within(length), &stopped);
  if (end == kNever) {
    const Time done = stopped - std::min(start, stopped);
    outcome_.ranks[p.rank].compute += done;
    device.busy += done;
    device.free = std::max(device.free, stopped);
    stop(p, stopped);
    return false;
  }
  p.clock = within(end);
  device.free = end;
  device.busy += end - start;
  outcome_.ranks[p.rank].compute += end - start;
  device.last_record = record(p, RecordKind::kCompute, start, prev);
  return true;
}

void Engine::allocate(Process& p, uint64_t bytes) {
  const uint32_t device = ranks_[p.rank].device;
  RankTotals& totals = outcome_.ranks[p.rank];
  const uint64_t limit = platform_.devices[device].memory;
  if (bytes > UINT64_MAX / 2 - memory_[device]) {
    throw std::overflow_error("rank " + std::to_string(p.rank) + " allocates more than 2^63 bytes");
  }
  totals.memory += bytes;
  memory_[device] += bytes;
  totals.peak_memory = std::max(totals.peak_memory, totals.memory);
  if (limit > 0 && memory_[device] > limit && !reported_[p.rank]) {
    reported_[p.rank] = true;
    outcome_.out_of_memory.push_back({p.rank, p.clock, memory_[device], limit, bytes});
    record(p, RecordKind::kOutOfMemory, p.clock, p.last, memory_[device]);
  }
}

Engine::Slot& Engine::slot_of(uint32_t rank, int32_t slot) {
  auto& slots = slots_[rank];
  if (slots.size() <= static_cast<size_t>(slot)) slots.resize(static_cast<size_t>(slot) + 1);
  return slots[static_cast<size_t>(slot)];
}

void Engine::open_slot(uint32_t rank, const Op& op) {
  Slot& opened = slot_of(rank, op.slot);
  if (opened.state == Slot::State::kOutstanding) {
    throw std::runtime_error("rank " + std::to_string(rank) + " reuses request " +
                             std::to_string(op.slot) + " while it is outstanding");
  }
  opened = Slot{};
  opened.op = op_index(&op);
  opened.state = Slot::State::kOutstanding;
}

bool Engine::wait(uint32_t index, const Op& op) {
  Process& p = processes_[index];
  if (p.stream != 0) {
    Ticket& ticket = tickets_[p.item.ticket];
    if (ticket.resolved) {
      p.resume_at[0] = ticket.at;
      p.cause[0] = ticket.record;
      p.inherit = ticket.request;
      tickets_.release(p.item.ticket);
    } else {
      ticket.waiter = index;
      p.pending[0] = 1;
    }
    return block(index, 0) && finish_wait(index);
  }
  const auto one = [&](Slot& slot) {
    if (slot.state == Slot::State::kResolved) {
      if (slot.at >= p.resume_at[0]) {
        p.resume_at[0] = slot.at;
        p.cause[0] = slot.record;
      }
      if (slot.request != kNil) p.inherit = slot.request;
      slot.state = Slot::State::kIdle;
    } else if (slot.state == Slot::State::kOutstanding) {
      slot.waiter = index;
      ++p.pending[0];
    }
  };
  if (op.slot == kAllSlots) {
    for (Slot& slot : slots_[p.rank]) one(slot);
  } else {
    Slot& slot = slot_of(p.rank, op.slot);
    if (slot.state == Slot::State::kIdle) {
      throw std::runtime_error("rank " + std::to_string(p.rank) + " waits for request " +
                               std::to_string(op.slot) + ", which is not outstanding");
    }
    one(slot);
  }
  return block(index, 0) && finish_wait(index);
}

bool Engine::sync(uint32_t index, const Op& op) {
  Process& p = processes_[index];
  for (uint32_t i = p.next_stream; i != kNil; i = processes_[i].next_stream) {
    Process& stream = processes_[i];
    if (op.peer != kAny && stream.stream != op.peer) continue;
    if (stream.finished) {
      if (stream.clock >= p.resume_at[0]) {
        p.resume_at[0] = stream.clock;
        p.cause[0] = stream.last;
      }
    } else {
      stream.sync_waiter = index;
      ++p.pending[0];
    }
  }
  return block(index, 0) && finish_wait(index);
}

}  // namespace leeboard::sim
