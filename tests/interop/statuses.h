// What a device and qemu-nbd say of every sector in a metadata context.
#ifndef BERTH_TESTS_INTEROP_STATUSES_H_
#define BERTH_TESTS_INTEROP_STATUSES_H_

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "image/block/block_device.h"
#include "image/io/reactor_pool.h"
#include "nlohmann/json.hpp"
#include "tests/interop/program.h"

namespace berth::testing {

// A status for each sector of 512 bytes; none where the device has no such context.
inline std::vector<uint64_t> Statuses(BlockDevice& device, Reactor& reactor, const std::string& name) {
  std::vector<uint64_t> sectors;
  const auto contexts = device.contexts();
  const auto context = std::find_if(contexts.begin(), contexts.end(),
                                    [&name](const auto& one) { return one->name() == name; });
  if (context == contexts.end()) return sectors;
  const auto read = [&]() -> Task<IoResult> {
    auto channel = (*context)->Open(reactor);
    if (!channel.ok()) co_return IoResult::Error(EIO);
    for (uint64_t at = 0; at < device.size();) {
      std::vector<StatusExtent> some;
      const IoResult result = co_await (*channel)->Extents(at, device.size() - at, &some);
      if (!result.ok() || some.empty()) co_return result;
      for (const StatusExtent& extent : some) {
        at += extent.length;
        sectors.insert(sectors.end(), extent.length / 512, extent.status);
      }
    }
    co_return IoResult::Ok();
  };
  EXPECT_TRUE(RunOn(reactor, read).ok());
  return sectors;
}

// The same, as qemu-nbd says of the image with `options`.
inline std::vector<uint64_t> QemusStatuses(const std::string& image, const std::string& context,
                                           const std::vector<std::string>& options) {
  std::vector<std::string> arguments = {"nbdinfo", "--json", "--map=" + context, "--", "[", "qemu-nbd", "-r",
                                        "-f",      "qcow2"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  arguments.insert(arguments.end(), {image, "]"});
  const ProgramResult result = RunProgram(arguments);
  EXPECT_EQ(result.exit_code, 0) << result.errors << result.output;
  std::vector<uint64_t> sectors;
  if (result.exit_code != 0) return sectors;
  for (const nlohmann::json& entry : nlohmann::json::parse(result.output)) {
    sectors.insert(sectors.end(), entry["length"].get<uint64_t>() / 512, entry["type"]);
  }
  return sectors;
}

}  // namespace berth::testing

#endif  // BERTH_TESTS_INTEROP_STATUSES_H_
