// A switch in user space: packets of TUN devices pass through a star of links.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "star.h"

namespace leeboard::relay {

struct RelayReport {
  std::vector<PortCounters> ports;
  uint64_t not_ours = 0;  // packets to nobody on the star
  uint64_t refused = 0;   // packets that a device did not take
  // How late packets were handed over, of those that were due.
  double late_mean = 0.0, late_most = 0.0;
  double busy = 0.0;  // seconds of processor time
};

// One thread moves IPv4 packets between the given TUN descriptors. Port i has the address
// `network` + i + 1. The descriptors stay the caller's, and must be open until stop().
class Relay {
 public:
  Relay(std::vector<int> descriptors, std::vector<PortOptions> ports, uint32_t framing,
        uint32_t network);
  ~Relay();
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  // Other links, from now on; counters begin at zero. Packets that are under way are dropped.
  void set_links(std::vector<PortOptions> ports);
  RelayReport report() const;
  // Whether the thread got real-time priority.
  bool real_time() const { return real_time_.load(); }
  void stop();

 private:
  struct Packet {
    std::vector<uint8_t> bytes;
    uint32_t size = 0;
  };

  void run();
  bool read_all(uint32_t port);
  void deliver();
  uint64_t hold();

  std::vector<int> descriptors_;
  uint32_t framing_, network_;
  mutable std::mutex mutex_;
  Star star_;
  RelayReport totals_;
  uint64_t delivered_ = 0;
  std::vector<Packet> packets_;
  std::vector<uint64_t> free_;
  std::vector<Delivery> due_;
  std::vector<uint64_t> lost_;
  int epoll_ = -1, timer_ = -1, wake_ = -1;
  std::atomic<bool> stopping_{false}, real_time_{false};
  std::thread thread_;
};

}  // namespace leeboard::relay
