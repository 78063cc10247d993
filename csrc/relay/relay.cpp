#include "relay.h"

#include <stdexcept>

#ifdef __linux__

#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace leeboard::relay {
namespace {

constexpr uint32_t kLargest = 65536;
// Packets read of one device before what is due is looked at.
constexpr int kBatch = 32;
// Shorter waits are spun: a timer wakes later than that.
constexpr Nanoseconds kSpin = 15000;
constexpr uint64_t kWake = UINT64_MAX, kTimer = UINT64_MAX - 1;

Nanoseconds read_clock(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
}

[[noreturn]] void fail(const char* what) {
  throw std::runtime_error(std::string(what) + ": " + std::strerror(errno));
}

// A number of the packet's connection: target, protocol and ports.
uint64_t flow_of(const uint8_t* packet, size_t size) {
  uint64_t flow = uint64_t{packet[19]} << 8 | packet[9];
  const size_t header = (packet[0] & 15u) * size_t{4};
  const bool ports = packet[9] == 6 || packet[9] == 17;
  if (!ports || size < header + 4) return flow;
  for (size_t i = 0; i < 4; ++i) flow = flow << 8 | packet[header + i];
  return flow;
}

void watch(int epoll, int descriptor, uint64_t data) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = data;
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event) != 0) fail("epoll_ctl");
}

}  // namespace

Relay::Relay(std::vector<int> descriptors, std::vector<PortOptions> ports, uint32_t framing,
             uint32_t network)
    : descriptors_(std::move(descriptors)),
      framing_(framing),
      network_(network),
      star_(std::move(ports), framing) {
  if (descriptors_.size() != star_.ports()) {
    throw std::invalid_argument("descriptors: got " + std::to_string(descriptors_.size()) +
                                " for " + std::to_string(star_.ports()) + " ports");
  }
  for (const int descriptor : descriptors_) {
    const int flags = fcntl(descriptor, F_GETFL);
    if (flags < 0 || fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) != 0) fail("descriptors");
  }
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  wake_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (epoll_ < 0 || timer_ < 0 || wake_ < 0) fail("the relay");
  watch(epoll_, timer_, kTimer);
  watch(epoll_, wake_, kWake);
  for (size_t i = 0; i < descriptors_.size(); ++i) watch(epoll_, descriptors_[i], i);
  thread_ = std::thread([this] { run(); });
  sched_param priority{};
  priority.sched_priority = 1;
  real_time_ = pthread_setschedparam(thread_.native_handle(), SCHED_FIFO, &priority) == 0;
}

Relay::~Relay() {
  stop();
  for (const int descriptor : {epoll_, timer_, wake_}) {
    if (descriptor >= 0) close(descriptor);
  }
}

void Relay::stop() {
  if (!thread_.joinable()) return;
  stopping_ = true;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t told = write(wake_, &one, sizeof one);
  thread_.join();
}

void Relay::set_links(std::vector<PortOptions> ports) {
  if (ports.size() != descriptors_.size()) {
    throw std::invalid_argument("ports: got " + std::to_string(ports.size()) + ", expected " +
                                std::to_string(descriptors_.size()));
  }
  Star fresh(std::move(ports), framing_);
  const std::lock_guard<std::mutex> lock(mutex_);
  star_ = std::move(fresh);
  free_.clear();
  for (uint64_t i = 0; i < packets_.size(); ++i) free_.push_back(i);
  totals_ = {};
  delivered_ = 0;
}

RelayReport Relay::report() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  RelayReport report = totals_;
  if (delivered_ > 0) report.late_mean /= static_cast<double>(delivered_);
  for (uint32_t i = 0; i < star_.ports(); ++i) report.ports.push_back(star_.counters(i));
  return report;
}

uint64_t Relay::hold() {
  if (free_.empty()) {
    packets_.emplace_back();
    return packets_.size() - 1;
  }
  const uint64_t place = free_.back();
  free_.pop_back();
  return place;
}

// Takes what a host sends; true if there may be more.
bool Relay::read_all(uint32_t port) {
  uint8_t buffer[kLargest];
  for (int i = 0; i < kBatch; ++i) {
    const ssize_t size = read(descriptors_[port], buffer, sizeof buffer);
    if (size <= 0) return false;
    uint32_t target = star_.ports();
    uint64_t flow = 0;
    if (size >= 20 && buffer[0] >> 4 == 4) {
      uint32_t address;
      std::memcpy(&address, buffer + 16, sizeof address);
      target = ntohl(address) - network_ - 1;
      flow = flow_of(buffer, static_cast<size_t>(size));
    }
    if (target >= star_.ports()) {
      ++totals_.not_ours;
      continue;
    }
    const uint64_t place = hold();
    Packet& packet = packets_[place];
    packet.bytes.assign(buffer, buffer + size);
    packet.size = static_cast<uint32_t>(size);
    const Nanoseconds now = read_clock(CLOCK_MONOTONIC);
    if (!star_.offer(now, port, target, packet.size, place, flow)) free_.push_back(place);
  }
  return true;
}

void Relay::deliver() {
  const Nanoseconds now = read_clock(CLOCK_MONOTONIC);
  if (star_.next() > now) return;
  due_.clear();
  lost_.clear();
  star_.advance(now, due_, lost_);
  free_.insert(free_.end(), lost_.begin(), lost_.end());
  for (const Delivery& delivery : due_) {
    const Packet& packet = packets_[delivery.packet];
    if (write(descriptors_[delivery.target], packet.bytes.data(), packet.size) < 0) {
      ++totals_.refused;
    }
    free_.push_back(delivery.packet);
    const double late = 1e-9 * static_cast<double>(now - delivery.due);
    totals_.late_mean += late;
    totals_.late_most = std::max(totals_.late_most, late);
    ++delivered_;
  }
}

void Relay::run() {
  pthread_setname_np(pthread_self(), "relay");
  prctl(PR_SET_TIMERSLACK, 1UL);
  std::vector<epoll_event> events(descriptors_.size() + 2);
  const Nanoseconds begun = read_clock(CLOCK_THREAD_CPUTIME_ID);
  while (!stopping_) {
    Nanoseconds next;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      deliver();
      next = star_.next();
      totals_.busy = 1e-9 * static_cast<double>(read_clock(CLOCK_THREAD_CPUTIME_ID) - begun);
    }
    int timeout = -1;
    if (next != INT64_MAX) {
      const Nanoseconds wait = next - read_clock(CLOCK_MONOTONIC);
      if (wait <= kSpin) {
        timeout = 0;
      } else {
        itimerspec at{};
        const Nanoseconds early = next - kSpin / 2;
        at.it_value.tv_sec = early / 1000000000;
        at.it_value.tv_nsec = early % 1000000000;
        timerfd_settime(timer_, TFD_TIMER_ABSTIME, &at, nullptr);
      }
    }
    const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), timeout);
    if (count < 0 && errno != EINTR) return;
    for (int i = 0; i < count; ++i) {
      const uint64_t data = events[i].data.u64;
      if (data == kTimer || data == kWake) {
        uint64_t told;
        [[maybe_unused]] const ssize_t size = read(data == kTimer ? timer_ : wake_, &told, 8);
        continue;
      }
      const std::lock_guard<std::mutex> lock(mutex_);
      read_all(static_cast<uint32_t>(data));
    }
  }
}

}  // namespace leeboard::relay

#else

namespace leeboard::relay {

Relay::Relay(std::vector<int>, std::vector<PortOptions> ports, uint32_t framing, uint32_t network)
    : framing_(framing), network_(network), star_(std::move(ports), framing) {
  throw std::runtime_error("the relay needs Linux, whose TUN devices it reads");
}
Relay::~Relay() = default;
void Relay::stop() {}
void Relay::set_links(std::vector<PortOptions>) {}
RelayReport Relay::report() const { return totals_; }

}  // namespace leeboard::relay

#endif
