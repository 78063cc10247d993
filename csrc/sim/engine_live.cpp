// Ranks whose programs are written while they run. A rank without ops stops the engine where it is,
// in the middle of an event, and goes on there: what happens is what would have happened had all
// its ops been known.
#include "engine.h"

namespace leeboard::sim {

void Engine::follow(LiveOps& live) {
  live_ = &live;
  // What will come on the links of a ring is not known.
  can_fold_ = false;
}

// More ops, if the rank has any; else it starves, or is over.
bool Engine::feed(Process& p) {
  if (live_->next(p.rank, p.code, p.pc, p.end)) return true;
  if (live_->over(p.rank)) return false;
  if (live_->looks(p.rank)) {
    live_->looks(p.rank) = false;
    if (p.clock > now_) {
      live_->push(p.rank, {OpKind::kSleep, 0, 0, 0, 0, kNoSlot, 0, 0});
      return live_->next(p.rank, p.code, p.pc, p.end);
    }
  }
  starved_ = p.rank;
  return false;
}

uint32_t Engine::go_on() {
  if (stuck_) return kNil;
  stuck_ = !attempt([&] {
    if (options_.interrupted && options_.interrupted()) throw Interrupted();
    if (!live_->contradiction.empty()) throw Mismatch(live_->contradiction);
    if (!begun_) {
      begun_ = true;
      begin_all();
    } else {
      const uint32_t rank = starved_;
      starved_ = kNil;
      advance(rank);
    }
    if (starved_ == kNil) loop();
  });
  if (stuck_) starved_ = kNil;
  stuck_ = starved_ == kNil;
  return starved_;
}

Outcome Engine::finish() {
  const bool early = !stuck_;
  const Status status = outcome_.status;
  if (status == Status::kDone && attempt([&] { conclude(); }) && early) {
    outcome_.status = Status::kError;
    outcome_.message = "the run was ended before its ranks were";
  }
  return std::move(outcome_);
}

bool Engine::over(uint32_t rank, int32_t slot) const {
  const auto& slots = slots_[rank];
  if (static_cast<size_t>(slot) >= slots.size()) return false;
  const Slot& s = slots[static_cast<size_t>(slot)];
  if (s.state == Slot::State::kResolved) return s.at <= processes_[rank].clock;
  return s.state == Slot::State::kIdle;
}

}  // namespace leeboard::sim
