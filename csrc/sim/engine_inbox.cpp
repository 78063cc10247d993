// Ranks that receive from anywhere, or with any tag: what comes first is matched first.
#include <algorithm>

#include "engine.h"

namespace leeboard::sim {

// From its first such receive on, all messages to a rank are matched by arrival. What it has posted
// before, and what waits for it, moves there.
void Engine::open_inbox(uint32_t rank) {
  ranks_[rank].wildcard = true;
  struct Moved {
    Time at;  // when it is known here that the message is there; kNever: not yet
    uint32_t place, message;
  };
  std::vector<Moved> moved;
  std::vector<uint32_t> posted;
  for (const MailKey& key : mailbox_.keys_to(rank)) {
    for (;;) {
      Mailbox::Entry& entry = mailbox_.at(key);
      if (entry.head == kNil) break;
      if (entry.receives) {
        posted.push_back(mailbox_.take(entry, receives_));
        continue;
      }
      const uint32_t index = mailbox_.take(entry, messages_);
      const Message& m = messages_[index];
      moved.push_back({m.eager ? m.arrived : m.ready + latency(m.source, rank), m.place, index});
    }
  }
  std::sort(posted.begin(), posted.end(),
            [&](uint32_t x, uint32_t y) { return receives_[x].place < receives_[y].place; });
  inboxes_[rank].receives.assign(posted.begin(), posted.end());
  // Pairs count their messages in the order in which they were sent.
  std::sort(moved.begin(), moved.end(),
            [](const Moved& x, const Moved& y) { return x.place < y.place; });
  for (const Moved& entry : moved) {
    Message& m = messages_[entry.message];
    m.place = orders_[pair_key(m.source, rank)].sent++;
  }
  std::stable_sort(moved.begin(), moved.end(),
                   [](const Moved& x, const Moved& y) { return x.at < y.at; });
  for (const Moved& entry : moved) {
    if (entry.at <= now_) {
      arrive_in_inbox(entry.message);
    } else if (entry.at != kNever) {
      push(EventKind::kInbox, entry.message, entry.at);
    }
  }
}

void Engine::arrive_in_inbox(uint32_t index) {
  const Message& m = messages_[index];
  Order& order = orders_[pair_key(m.source, m.target)];
  if (m.place != order.entered) {
    order.early.emplace(m.place, index);
    return;
  }
  enter(index);
  ++order.entered;
  for (auto it = order.early.begin(); it != order.early.end() && it->first == order.entered;) {
    enter(it->second);
    ++order.entered;
    it = order.early.erase(it);
  }
}

void Engine::enter(uint32_t index) {
  const Message& m = messages_[index];
  Inbox& inbox = inboxes_[m.target];
  for (auto it = inbox.receives.begin(); it != inbox.receives.end(); ++it) {
    const Receive& r = receives_[*it];
    if ((r.source == kNil || r.source == m.source) && (r.tag == kAny || r.tag == m.tag)) {
      const uint32_t met = *it;
      inbox.receives.erase(it);
      match(index, receives_[met]);
      receives_.release(met);
      return;
    }
  }
  inbox.messages.push_back(index);
}

}  // namespace leeboard::sim
