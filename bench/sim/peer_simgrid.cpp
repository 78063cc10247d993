// SimGrid's S4U on the logical workloads of bench/sim/workloads.py.
//   peer_simgrid KIND RANKS ROUNDS BYTES LATENCY BANDWIDTH   (all_to_all: sizes on standard input)
// prints the simulated end and the seconds that the simulation took.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <simgrid/s4u.hpp>
#include <string>
#include <vector>

namespace sg = simgrid::s4u;

struct Workload {
  std::string kind;
  int ranks, rounds;
  double bytes, latency, bandwidth;
};

static std::vector<sg::Host*> star(const Workload& work) {
  auto* zone = sg::create_full_zone("star");
  std::vector<sg::Host*> hosts;
  std::vector<sg::Link*> up, down;
  for (int i = 0; i < work.ranks; ++i) {
    const std::string name = std::to_string(i);
    hosts.push_back(zone->create_host("h" + name, 1e9));
    for (auto* links : {&up, &down}) {
      auto* link = zone->create_link((links == &up ? "u" : "d") + name, work.bandwidth);
      link->set_latency(work.latency / 2)->seal();
      links->push_back(link);
    }
  }
  const auto route = [&](int a, int b) {
    zone->add_route(hosts[a]->get_netpoint(), hosts[b]->get_netpoint(), nullptr, nullptr,
                    std::vector<sg::LinkInRoute>{sg::LinkInRoute(up[a]), sg::LinkInRoute(down[b])},
                    false);
  };
  // A table of all pairs would take gigabytes where ranks talk to one or two others.
  for (int a = 0; a < work.ranks; ++a) {
    if (work.kind == "ping_pong") {
      route(a, a ^ 1);
    } else if (work.kind == "ring") {
      route(a, (a + 1) % work.ranks);
    } else {
      for (int b = 0; b < work.ranks; ++b) {
        if (a != b) route(a, b);
      }
    }
  }
  zone->seal();
  return hosts;
}

static char payload;

static void send(int to, double bytes) {
  sg::Mailbox::by_name(std::to_string(to))->put(&payload, static_cast<uint64_t>(bytes));
}

static void actors(const Workload& work, const std::vector<sg::Host*>& hosts) {
  for (int me = 0; me < work.ranks; ++me) {
    sg::Actor::create("a", hosts[me], [work, me] {
      auto* mine = sg::Mailbox::by_name(std::to_string(me));
      if (work.kind == "ping_pong") {
        for (int i = 0; i < work.rounds; ++i) {
          if (me % 2 == 0) send(me + 1, work.bytes);
          mine->get<char>();
          if (me % 2 == 1) send(me - 1, work.bytes);
        }
        return;
      }
      auto* next = sg::Mailbox::by_name(std::to_string((me + 1) % work.ranks));
      for (int i = 0; i < 2 * (work.ranks - 1) * work.rounds; ++i) {
        auto sent = next->put_async(&payload, static_cast<uint64_t>(work.bytes));
        mine->get<char>();
        sent->wait();
      }
    });
  }
}

static void exchange(const Workload& work, const std::vector<sg::Host*>& hosts) {
  std::vector<uint64_t> sizes(static_cast<size_t>(work.ranks) * work.ranks);
  for (uint64_t& size : sizes) std::cin >> size;
  sg::Actor::create("all", hosts[0], [sizes, hosts, ranks = work.ranks] {
    std::vector<sg::CommPtr> comms;
    for (int a = 0; a < ranks; ++a) {
      for (int b = 0; b < ranks; ++b) {
        if (a != b) {
          comms.push_back(sg::Comm::sendto_async(hosts[a], hosts[b], sizes[a * ranks + b]));
        }
      }
    }
    for (const auto& comm : comms) comm->wait();
  });
}

int main(int argc, char** argv) {
  sg::Engine engine(&argc, argv);
  if (argc != 7) return 2;
  const Workload work{argv[1],
                      std::atoi(argv[2]),
                      std::atoi(argv[3]),
                      std::atof(argv[4]),
                      std::atof(argv[5]),
                      std::atof(argv[6])};
  const auto hosts = star(work);
  if (work.kind == "all_to_all") {
    exchange(work, hosts);
  } else {
    actors(work, hosts);
  }
  const auto start = std::chrono::steady_clock::now();
  engine.run();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%.12g %.9g\n", sg::Engine::get_clock(), took.count());
}
