// Messages that wait for their receive, and receives that wait for their message,
// first-in-first-out for each (target, source, tag, channel).
#pragma once

#include <cstdint>
#include <vector>

#include "random.h"

namespace leeboard::sim {

inline constexpr uint32_t kNil = UINT32_MAX;

struct MailKey {
  uint32_t target, source;
  int32_t tag;
  // 0: the program's own messages; g + 1: those of collectives on group g, tag is which one.
  uint32_t channel;
  bool operator==(const MailKey&) const = default;
};

// Two pools of items hang in chains; a key's chain holds either messages or receives.
template <class Item>
class Pool {
 public:
  uint32_t make() {
    if (free_ != kNil) {
      const uint32_t index = free_;
      free_ = items_[index].next;
      items_[index] = Item{};
      return index;
    }
    items_.emplace_back();
    return static_cast<uint32_t>(items_.size() - 1);
  }
  void release(uint32_t index) {
    items_[index].next = free_;
    free_ = index;
  }
  Item& operator[](uint32_t index) { return items_[index]; }
  const Item& operator[](uint32_t index) const { return items_[index]; }

 private:
  std::vector<Item> items_;
  uint32_t free_ = kNil;
};

// Open addressing, linear probing, deletion by shifting back: no tombstones to wade through.
class Mailbox {
 public:
  struct Entry {
    MailKey key;
    uint32_t head = kNil;
    uint32_t tail : 31 = 0;
    uint32_t receives : 1 = 0;
  };

  Mailbox() : entries_(64), mask_(63) {}

  // The chain of `key`, made if there is none: head is then kNil, and link() must follow.
  Entry& at(const MailKey& key) {
    if (2 * (size_ + 1) > entries_.size()) grow();
    uint64_t place = hash(key) & mask_;
    while (entries_[place].head != kNil) {
      if (entries_[place].key == key) return entries_[place];
      place = (place + 1) & mask_;
    }
    entries_[place].key = key;
    return entries_[place];
  }

  template <class Item>
  void link(Entry& entry, Pool<Item>& pool, uint32_t item, bool receives) {
    pool[item].next = kNil;
    ++items_;
    if (entry.head == kNil) {
      entry.head = item;
      entry.receives = receives;
      ++size_;
    } else {
      pool[entry.tail].next = item;
    }
    entry.tail = item & 0x7fffffff;
  }

  // The oldest item of a chain that is not empty. `entry` is not valid afterwards.
  template <class Item>
  uint32_t take(Entry& entry, Pool<Item>& pool) {
    const uint32_t item = entry.head;
    --items_;
    entry.head = pool[item].next;
    if (entry.head == kNil) erase(static_cast<uint64_t>(&entry - entries_.data()));
    return item;
  }

  // Keys of the chains of the program's own messages to a rank, in no particular order.
  std::vector<MailKey> keys_to(uint32_t target) const {
    std::vector<MailKey> keys;
    for (const Entry& entry : entries_) {
      if (entry.head != kNil && entry.key.target == target && entry.key.channel == 0) {
        keys.push_back(entry.key);
      }
    }
    return keys;
  }

  // Items in all chains.
  uint64_t size() const { return items_; }

 private:
  static uint64_t hash(const MailKey& key) {
    const uint64_t ends = (uint64_t{key.target} << 32) | key.source;
    const uint64_t label = (uint64_t{key.channel} << 32) | static_cast<uint32_t>(key.tag);
    return mix(ends * 0x9e3779b97f4a7c15 + label);
  }

  void erase(uint64_t hole) {
    --size_;
    uint64_t place = hole;
    for (;;) {
      place = (place + 1) & mask_;
      if (entries_[place].head == kNil) break;
      const uint64_t home = hash(entries_[place].key) & mask_;
      // An entry may move to the hole unless its home lies between the two.
      if (((place - home) & mask_) >= ((place - hole) & mask_)) {
        entries_[hole] = entries_[place];
        hole = place;
      }
    }
    entries_[hole].head = kNil;
  }

  void grow() {
    std::vector<Entry> old(2 * entries_.size());
    old.swap(entries_);
    mask_ = entries_.size() - 1;
    for (const Entry& entry : old) {
      if (entry.head == kNil) continue;
      uint64_t place = hash(entry.key) & mask_;
      while (entries_[place].head != kNil) place = (place + 1) & mask_;
      entries_[place] = entry;
    }
  }

  std::vector<Entry> entries_;
  uint64_t mask_;
  uint64_t size_ = 0;  // chains
  uint64_t items_ = 0;
};

}  // namespace leeboard::sim
