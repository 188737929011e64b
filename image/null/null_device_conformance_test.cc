#include <memory>

#include "image/null/null_device.h"
#include "tests/conformance/block_device_conformance.h"

namespace berth {
namespace {

INSTANTIATE_TEST_SUITE_P(Null, BlockDeviceConformance,
                         testing::Values(ConformanceCase{
                             .name = "null",
                             .make = [](uint64_t size) { return std::make_shared<NullDevice>(size); },
                             .keeps_data = false}));

}  // namespace
}  // namespace berth
