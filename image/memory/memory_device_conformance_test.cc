#include "image/memory/memory_device.h"
#include "tests/conformance/block_device_conformance.h"

namespace berth {
namespace {

INSTANTIATE_TEST_SUITE_P(Memory, BlockDeviceConformance,
                         testing::Values(ConformanceCase{.name = "memory", .make = MemoryDevice::Create}));

}  // namespace
}  // namespace berth
