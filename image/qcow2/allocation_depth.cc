#include "image/qcow2/allocation_depth.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <utility>
#include <vector>

#include "image/block/extent.h"
#include "image/qcow2/qcow2_channel.h"

namespace berth {
namespace {

// Slices that one call loads at most.
constexpr int kMostLoads = 256;

void Append(uint64_t length, uint64_t depth, std::vector<StatusExtent>* extents) {
  if (!extents->empty() && extents->back().status == depth) {
    extents->back().length += length;
  } else {
    extents->push_back({length, depth});
  }
}

class DepthChannel final : public StatusChannel {
 public:
  DepthChannel(std::unique_ptr<Qcow2Channel> image, std::unique_ptr<StatusChannel> below)
      : image_(std::move(image)), below_(std::move(below)) {}

  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<StatusExtent>* out) override {
    return image_->Depths(offset, length, below_.get(), out);
  }

 private:
  const std::unique_ptr<Qcow2Channel> image_;
  const std::unique_ptr<StatusChannel> below_;  // Null where what is below is no chain.
};

}  // namespace

absl::StatusOr<std::unique_ptr<StatusChannel>> AllocationDepth::Open(Reactor& reactor) {
  auto image = Qcow2Channel::Open(*device_, reactor);
  if (!image.ok()) return image.status();
  std::unique_ptr<StatusChannel> below;
  if (BlockDevice* const backing = device_->backing(); backing != nullptr) {
    for (const std::shared_ptr<StatusContext>& context : backing->contexts()) {
      if (context->name() != kAllocationDepth) continue;
      auto opened = context->Open(reactor);
      if (!opened.ok()) return opened.status();
      below = *std::move(opened);
    }
  }
  return std::make_unique<DepthChannel>(*std::move(image), std::move(below));
}

Task<IoResult> Qcow2Channel::Depths(uint64_t offset, uint64_t length, StatusChannel* below,
                                    std::vector<StatusExtent>* out) {
  if (!Inside(offset, length)) co_return IoResult::Error(EIO);
  const uint64_t end = offset + length;
  std::vector<StatusExtent> found;
  for (int loads = 0; offset < end && found.size() < kMaxExtents;) {
    const std::optional<Run> run = Lookup(offset, end - offset);
    if (!run.has_value()) {
      if (++loads > kMostLoads && !found.empty()) break;
      const IoResult loaded = co_await LoadSlice(offset);
      if (!loaded.ok()) co_return loaded;
      continue;
    }
    if (run->kind == qcow2::RunKind::kInvalid) co_return IoResult::Error(EIO);
    uint64_t covered = run->length;
    if (run->kind != qcow2::RunKind::kUnallocated) {
      Append(covered, 1, &found);
    } else if (backing_ == nullptr) {
      Append(covered, 0, &found);
    } else if (offset >= device_.backing_size_) {
      Append(covered, 2, &found);
    } else {
      covered = std::min(covered, device_.backing_size_ - offset);
      if (below == nullptr) {
        Append(covered, 2, &found);
      } else {
        std::vector<StatusExtent> deeper;
        const IoResult result = co_await below->Extents(offset, covered, &deeper);
        if (!result.ok()) co_return result;
        covered = 0;
        for (const StatusExtent& extent : deeper) {
          Append(extent.length, extent.status == 0 ? 0 : extent.status + 1, &found);
          covered += extent.length;
        }
      }
    }
    offset += covered;
  }
  if (found.size() > kMaxExtents) found.resize(kMaxExtents);
  out->insert(out->end(), found.begin(), found.end());
  co_return IoResult::Ok();
}

}  // namespace berth
