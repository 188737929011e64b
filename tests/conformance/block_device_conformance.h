// BlockDeviceConformance: the tests that every BlockDevice has to pass, filters and stacks of them too.
//
// A device's test target links :block_device_conformance and registers the device in one statement:
//
//   INSTANTIATE_TEST_SUITE_P(Memory, BlockDeviceConformance, testing::Values(ConformanceCase{
//       .name = "memory", .make = [](uint64_t size) { return MemoryDevice::Create(size); }}));
//
// A test of what a device does not do by its traits (writes of a read-only one, resizes of a fixed one)
// passes at once.
//
// Random programs begin with a seed that is always the same; BERTH_CONFORMANCE_SEED in the environment
// chooses another, and a failure names seed and step.
#ifndef BERTH_TESTS_CONFORMANCE_BLOCK_DEVICE_CONFORMANCE_H_
#define BERTH_TESTS_CONFORMANCE_BLOCK_DEVICE_CONFORMANCE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "image/block/block_device.h"
#include "image/io/reactor_pool.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/conformance/reference_model.h"

namespace berth {

struct ConformanceCase {
  std::string name;
  // Makes a device of `size` bytes, a multiple of 512, that reads as zeroes; one that is read-only contains
  // what FillForReadOnlyTests() writes. What lies below it (a temporary file, another device) lives as long
  // as it does.
  std::function<absl::StatusOr<std::shared_ptr<BlockDevice>>(uint64_t size)> make;
  // False where it forgets what is written and always reads as zeroes.
  bool keeps_data = true;
  // Not a multiple of any cluster, so that the last one is a part.
  uint64_t size = (uint64_t{3} << 20) + 1536;
};

// How a case is shown in test output.
std::ostream& operator<<(std::ostream& out, const ConformanceCase& test_case);

// Writes the content that the suite expects of a read-only device. Any thread but a reactor's.
absl::Status FillForReadOnlyTests(BlockDevice& device);

class BlockDeviceConformance : public testing::TestWithParam<ConformanceCase> {
 protected:
  static constexpr int kReactors = 2;

  void SetUp() override;
  void TearDown() override;

  uint64_t size() const { return GetParam().size; }
  bool writable() const { return !device_->traits().read_only; }
  // What the device contains before the test changed anything.
  ReferenceModel InitialModel() const;

  // The seed of random programs.
  static uint64_t Seed();

  // Reads all of the device and compares.
  void ExpectContent(BlockingChannel& channel, const ReferenceModel& model);
  // Calls Extents() until the range is covered, and checks what the interface promises.
  void ExpectValidExtents(BlockingChannel& channel, uint64_t offset, uint64_t length);

  std::unique_ptr<ReactorPool> pool_;
  std::shared_ptr<BlockDevice> device_;
};

}  // namespace berth

#endif  // BERTH_TESTS_CONFORMANCE_BLOCK_DEVICE_CONFORMANCE_H_
