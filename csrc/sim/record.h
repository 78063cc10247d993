// The timeline of a run: what ranks and messages did from when to when, and what each waited for.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sim_time.h"

namespace leeboard::sim {

enum class RecordKind : uint8_t {
  kCompute = 1,
  kSend = 2,
  kRecv = 3,
  kWait = 4,
  kCollective = 5,
  kMessage = 6,
  kMark = 7,
  kTake = 8,
  kOutOfMemory = 9,
  kStopped = 10,
  kSync = 11,
  kDone = 12,
  kSleep = 13,
};

inline constexpr uint32_t kNoRecord = UINT32_MAX;

struct Record {
  Time start, end;
  uint64_t bytes;
  // A message's time on an idle network.
  Time ideal;
  // The record whose end let this one end.
  uint32_t prev;
  uint32_t rank;
  int32_t peer;
  uint32_t op;
  int32_t tag;
  RecordKind kind;
  uint8_t stream;
  uint16_t flags;
};
static_assert(sizeof(Record) == 56);

class Timeline {
 public:
  explicit Timeline(uint64_t limit) : limit_(limit), on_(limit > 0) {}

  bool on() const { return on_; }
  bool dropped() const { return dropped_; }
  const std::vector<Record>& records() const { return records_; }
  // Of each rank's ops, counted from its first one: where that lies among all.
  void lay_out(std::span<const uint64_t> begin) {
    for (Record& record : records_) record.op += static_cast<uint32_t>(begin[record.rank]);
  }
  Time end_of(uint32_t record) const { return record == kNoRecord ? 0 : records_[record].end; }

  uint32_t add(const Record& record) {
    if (records_.size() >= limit_) {
      // Half a timeline would mislead.
      records_ = {};
      on_ = false;
      dropped_ = true;
      return kNoRecord;
    }
    records_.push_back(record);
    return static_cast<uint32_t>(records_.size() - 1);
  }

 private:
  std::vector<Record> records_;
  uint64_t limit_;
  bool on_;
  bool dropped_ = false;
};

}  // namespace leeboard::sim
