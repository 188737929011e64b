// DetectZeroesDevice: the next device, where writes of nothing but zeroes become zeroing.
//
// Every write is looked at, which costs a pass over the data up to its first byte that is not zero. A write
// that is zeroes in parts only stays a write.
#ifndef BERTH_IMAGE_FILTER_DETECT_ZEROES_H_
#define BERTH_IMAGE_FILTER_DETECT_ZEROES_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "image/filter/forwarding.h"

namespace berth {

enum class ZeroDetection : uint8_t {
  kOff,
  kOn,     // The range keeps its space.
  kUnmap,  // The range may become a hole.
};

class DetectZeroesDevice final : public ForwardingDevice {
 public:
  // `detection` is not kOff: without detection there is no need of a filter.
  DetectZeroesDevice(std::shared_ptr<BlockDevice> next, ZeroDetection detection);

  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;

 private:
  const ZeroFlags flags_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_FILTER_DETECT_ZEROES_H_
