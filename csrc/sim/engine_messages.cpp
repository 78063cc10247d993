// Point to point: what meets what, and when a message may leave.
#include <algorithm>

#include "engine.h"

namespace leeboard::sim {
bool Engine::send(uint32_t index, const Op& op) {
  if (!in_step(index)) return false;
  Process& p = processes_[index];
  const auto target = static_cast<uint32_t>(op.peer);
  const Time ready = now_ + platform_.protocol.send_overhead;
  if (p.stream == 0 && op.slot >= 0) {
    open_slot(p.rank, op);
    offer(p, target, op.tag, 0, op.a, {p.rank, op.slot, 0, Endpoint::Kind::kSlot}, ready);
    processes_[index].clock = ready;
    return true;
  }
  p.pending[0] = 1;
  offer(p, target, op.tag, 0, op.a, {index, kNoSlot, 0, Endpoint::Kind::kProcess}, ready);
  return block(index, 0) && finish_wait(index);
}

bool Engine::receive(uint32_t index, const Op& op) {
  if (!in_step(index)) return false;
  Process& p = processes_[index];
  Receive posted;
  posted.source = op.peer == kAny ? kNil : static_cast<uint32_t>(op.peer);
  posted.tag = op.tag;
  posted.bytes = op.a;
  posted.posted = now_;
  posted.record = p.last;
  posted.op = op_index(&op);
  if ((op.peer == kAny || op.tag == kAny) && !ranks_[p.rank].wildcard) open_inbox(p.rank);
  if (p.stream == 0 && op.slot >= 0) {
    open_slot(p.rank, op);
    posted.endpoint = {p.rank, op.slot, 0, Endpoint::Kind::kSlot};
    expect(p.rank, posted.source, op.tag, 0, posted);
    return true;
  }
  p.pending[0] = 1;
  posted.endpoint = {index, kNoSlot, 0, Endpoint::Kind::kProcess};
  expect(p.rank, posted.source, op.tag, 0, posted);
  return block(index, 0) && finish_wait(index);
}

void Engine::offer(Process& p, uint32_t target, int32_t tag, uint32_t channel, uint64_t bytes,
                   const Endpoint& sender, Time ready) {
  const uint32_t index = messages_.make();
  Message& m = messages_[index];
  m.source = p.rank;
  m.target = target;
  m.tag = tag;
  m.channel = channel;
  m.bytes = bytes;
  m.sender = sender;
  m.ready = ready;
  m.sender_record = p.last;
  // Messages of the program carry requests along; those of collectives are nobody's.
  if (channel == 0) m.request = p.request != kNil ? p.request : ranks_[p.rank].request;
  m.op = op_index(p.op);
  m.eager = platform_.protocol.eager(bytes);
  outcome_.ranks[p.rank].sent += bytes;
  ++in_flight_;
  if (m.eager && channel == 0) {
    // The message is buffered: its sender goes on. Rounds of a collective wait until it has left.
    m.sender = {};
    resolve(sender, ready, kNoRecord, kNil);
  }
  if (channel == 0 && ranks_[target].wildcard) {
    // Matched by arrival: of the message itself, or of the word that it is there.
    m.place = orders_[pair_key(m.source, target)].sent++;
    if (m.eager) return start(index, ready);
    const Time word = ready + latency(m.source, target);
    return push(EventKind::kInbox, index, word);
  }
  m.place = sends_++;
  Mailbox::Entry& entry = mailbox_.at({target, p.rank, tag, channel});
  if (entry.head != kNil && entry.receives) {
    const uint32_t met = mailbox_.take(entry, receives_);
    match(index, receives_[met]);
    receives_.release(met);
  } else {
    mailbox_.link(entry, messages_, index, false);
  }
  if (messages_[index].eager) start(index, ready);
}

void Engine::expect(uint32_t target, uint32_t source, int32_t tag, uint32_t channel,
                    const Receive& receive) {
  if (channel == 0 && ranks_[target].wildcard) {
    Inbox& inbox = inboxes_[target];
    for (auto it = inbox.messages.begin(); it != inbox.messages.end(); ++it) {
      const Message& m = messages_[*it];
      if ((source == kNil || m.source == source) && (tag == kAny || m.tag == tag)) {
        const uint32_t met = *it;
        inbox.messages.erase(it);
        return match(met, receive);
      }
    }
    const uint32_t index = receives_.make();
    receives_[index] = receive;
    inbox.receives.push_back(index);
    return;
  }
  Receive posted = receive;
  posted.word = word(target, source);
  Mailbox::Entry& entry = mailbox_.at({target, source, tag, channel});
  if (entry.head != kNil && !entry.receives) {
    return match(mailbox_.take(entry, messages_), posted);
  }
  const uint32_t index = receives_.make();
  receives_[index] = posted;
  receives_[index].place = posts_++;
  mailbox_.link(entry, receives_, index, true);
}

// A receiver's word goes through the same socket as its messages to the sender, behind what that
// has taken over. kNil: there is nothing before it, and it is there a latency later.
uint32_t Engine::word(uint32_t from, uint32_t to) {
  const Protocol& protocol = platform_.protocol;
  if (protocol.send_buffer == 0 || protocol.eager_limit > 0 ||
      protocol.handshake != Handshake::kNotify) {
    return kNil;
  }
  const uint32_t a = ranks_[from].device, b = ranks_[to].device;
  if (a == b || !network_->queued(a, b)) return kNil;
  const uint32_t index = messages_.make();
  Message& m = messages_[index];
  m.source = from;
  m.target = to;
  m.word = true;
  dirty_ = true;
  network_->start(index, a, b, 0, 0, now_);
  return index;
}

// A message and its receive have met, now.
void Engine::match(uint32_t index, const Receive& receive) {
  Message& m = messages_[index];
  if (m.bytes > receive.bytes) {
    throw std::runtime_error("rank " + std::to_string(m.target) + " expects " +
                             std::to_string(receive.bytes) + " bytes of rank " +
                             std::to_string(m.source) + " (tag " + std::to_string(m.tag) +
                             "), which sends " + std::to_string(m.bytes));
  }
  m.matched = true;
  m.receiver = receive.endpoint;
  if (live_ != nullptr && receive.endpoint.kind == Endpoint::Kind::kSlot) {
    live_->met(receive.endpoint.index, receive.endpoint.slot, m.source, m.op);
  }
  if (m.eager) {
    if (m.arrived == kNever) return;
    // It was on its way already.
    const Time at = std::max(m.arrived, now_) + platform_.protocol.recv_overhead;
    const uint32_t cause = m.arrived > receive.posted ? m.record : receive.record;
    const Endpoint receiver = m.receiver;
    const uint32_t request = m.request;
    messages_.release(index);
    return resolve(receiver, at, cause, request);
  }
  Time from_sender = m.ready;
  const Time back = latency(m.target, m.source);
  const bool asks = platform_.protocol.handshake == Handshake::kRequest;
  const bool by_arrival = m.channel == 0 && ranks_[m.target].wildcard;
  if (by_arrival) {
    from_sender = now_ + back;
  } else if (asks) {
    from_sender += latency(m.source, m.target) + back;
  }
  Time from_receiver = receive.posted + back;
  if (receive.word != kNil) {
    Message& word = messages_[receive.word];
    if (word.arrived == kNever) {
      word.waits = index;
      m.sender_record = receive.record;
      return;
    }
    from_receiver = word.arrived;
    messages_.release(receive.word);
  }
  if (from_receiver > from_sender) m.sender_record = receive.record;
  start(index, std::max({from_sender, from_receiver, now_}));
}

Time Engine::latency(uint32_t source, uint32_t target) {
  const uint32_t a = ranks_[source].device, b = ranks_[target].device;
  return a == b ? platform_.protocol.loopback_latency : network_->latency(a, b);
}

void Engine::start(uint32_t index, Time at) {
  if (at > now_) return push(EventKind::kStart, index, at);
  leave(index);
}

void Engine::leave(uint32_t index) {
  Message& m = messages_[index];
  const Protocol& protocol = platform_.protocol;
  m.ready = now_;
  if (m.bytes <= protocol.send_buffer) {
    const Endpoint sender = m.sender;
    m.sender = {};
    resolve(sender, now_, m.sender_record, kNil);
  }
  const uint32_t a = ranks_[m.source].device, b = ranks_[m.target].device;
  if (a == b) {
    const double rate = protocol.loopback_bandwidth;
    const Time length = rate > 0.0 ? duration(static_cast<double>(m.bytes), rate) : 0;
    return delivered(index, now_ + length, now_ + length + protocol.loopback_latency);
  }
  uint64_t bytes = m.bytes;
  Time delay = 0;
  if (protocol.jitter > 0.0 || protocol.loss > 0.0) {
    RandomStream& random = ranks_[m.source].random;
    const Time one_way = network_->latency(a, b);
    if (protocol.jitter > 0.0) {
      // May be negative; the sum with the latency is not.
      delay += from_seconds(to_seconds(one_way) * random.lognormal(protocol.jitter)) - one_way;
    }
    // Every round of retransmission costs the lost packets again, and a round trip.
    uint64_t packets = (m.bytes + protocol.packet - 1) / protocol.packet;
    while (protocol.loss > 0.0 && packets > 0) {
      packets = random.binomial(packets, protocol.loss);
      if (packets == 0) break;
      bytes += packets * std::min(protocol.packet, m.bytes);
      delay += one_way + network_->latency(b, a);
    }
  }
  dirty_ = true;
  network_->start(index, a, b, bytes, delay, now_);
}

void Engine::delivered(uint32_t index, Time departed, Time arrived) {
  Message& m = messages_[index];
  if (m.word) {
    m.arrived = arrived;
    if (m.waits == kNil) return;
    const uint32_t message = m.waits;
    messages_.release(index);
    return start(message, std::max(messages_[message].ready, arrived));
  }
  --in_flight_;
  ++outcome_.messages;
  within(arrived);
  if (platform_.protocol.jitter > 0.0 || platform_.protocol.loss > 0.0) {
    // A pair's messages are handed over in order.
    Time& last = last_arrival_[pair_key(m.source, m.target)];
    arrived = last = std::max(last, arrived);
  }
  outcome_.ranks[m.target].received += m.bytes;
  note(arrived, pair_key(m.source, m.target));
  m.arrived = arrived;
  if (timeline_.on()) {
    const uint32_t a = ranks_[m.source].device, b = ranks_[m.target].device;
    const Time ideal = a == b ? arrived - m.ready : network_->ideal(a, b, m.bytes);
    m.record = timeline_.add({m.ready, arrived, m.bytes, ideal, m.sender_record, m.source,
                              static_cast<int32_t>(m.target), m.op, m.tag, RecordKind::kMessage, 0,
                              static_cast<uint16_t>(m.channel > 0)});
  }
  const uint32_t record = m.record;
  const Endpoint sender = m.sender, receiver = m.receiver;
  const uint32_t request = m.request;
  if (m.matched) {
    messages_.release(index);
    resolve(receiver, arrived + platform_.protocol.recv_overhead, record, request);
  } else if (m.channel == 0 && ranks_[m.target].wildcard) {
    push(EventKind::kInbox, index, arrived);
  }
  resolve(sender, departed, record, kNil);
}

}  // namespace leeboard::sim
