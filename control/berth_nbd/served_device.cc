#include "control/berth_nbd/served_device.h"

#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace berth::control {
namespace {

constexpr char kDepth[] = "qemu:allocation-depth";
constexpr char kBitmap[] = "qemu:dirty-bitmap:";

class ServedChannel final : public ForwardingChannel {
 public:
  ServedChannel(std::unique_ptr<BlockChannel> next, bool has_fast_zero)
      : ForwardingChannel(std::move(next)), has_fast_zero_(has_fast_zero) {}

  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override {
    if (!has_fast_zero_ && Has(flags, ZeroFlags::kFastOnly)) return Task<IoResult>(IoResult::Error(ENOTSUP));
    return next().Zero(offset, length, flags);
  }

 private:
  const bool has_fast_zero_;
};

class FlatDepthChannel final : public StatusChannel {
 public:
  Task<IoResult> Extents(uint64_t, uint64_t length, std::vector<StatusExtent>* out) override {
    out->push_back({length, 1});
    return Task<IoResult>(IoResult::Ok());
  }
};

class FlatDepth final : public StatusContext {
 public:
  FlatDepth() : StatusContext(kDepth, /*wide=*/false) {}
  absl::StatusOr<std::unique_ptr<StatusChannel>> Open(Reactor&) override {
    return std::make_unique<FlatDepthChannel>();
  }
};

std::shared_ptr<StatusContext> Find(const std::vector<std::shared_ptr<StatusContext>>& contexts,
                                    absl::string_view name) {
  for (const std::shared_ptr<StatusContext>& context : contexts) {
    if (context->name() == name) return context;
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<std::shared_ptr<ServedDevice>> ServedDevice::Create(std::shared_ptr<BlockDevice> next,
                                                                   bool flat, bool allocation_depth,
                                                                   const std::vector<std::string>& bitmaps) {
  const std::vector<std::shared_ptr<StatusContext>> known = next->contexts();
  std::vector<std::shared_ptr<StatusContext>> shown;
  if (allocation_depth) {
    shown.push_back(Find(known, kDepth));
    if (flat && shown.back() == nullptr) shown.back() = std::make_shared<FlatDepth>();
    if (shown.back() == nullptr) {
      return absl::NotFoundError(
          "-A: images of this format do not say how deep their data lies in the chain");
    }
  }
  for (const std::string& bitmap : bitmaps) {
    std::shared_ptr<StatusContext> context = Find(known, absl::StrCat(kBitmap, bitmap));
    if (context == nullptr) {
      return absl::NotFoundError(
          absl::StrCat("-B is '", bitmap.substr(0, 200), "'; Bitmap '", bitmap.substr(0, 200),
                       "' is not found in the image; qemu-img info lists those it has"));
    }
    if (Find(shown, context->name()) == nullptr) shown.push_back(std::move(context));
  }
  return std::shared_ptr<ServedDevice>(new ServedDevice(std::move(next), std::move(shown)));
}

ServedDevice::ServedDevice(std::shared_ptr<BlockDevice> next,
                           std::vector<std::shared_ptr<StatusContext>> contexts)
    : ForwardingDevice(std::move(next)),
      has_fast_zero_(ForwardingDevice::next().traits().fast_zero),
      traits_(ForwardingDevice::next().traits()),
      contexts_(std::move(contexts)) {
  traits_.can_discard = true;
  traits_.fast_zero = true;
  traits_.resizable = false;
}

absl::StatusOr<std::unique_ptr<BlockChannel>> ServedDevice::OpenChannel(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<BlockChannel>> channel = next().OpenChannel(reactor);
  if (!channel.ok()) return channel.status();
  return std::make_unique<ServedChannel>(*std::move(channel), has_fast_zero_);
}

}  // namespace berth::control
