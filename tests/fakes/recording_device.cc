#include "tests/fakes/recording_device.h"

#include <utility>

namespace berth {

class RecordingChannel final : public ForwardingChannel {
 public:
  using Event = RecordingDevice::Event;
  using Kind = RecordingDevice::Kind;

  RecordingChannel(std::unique_ptr<BlockChannel> next, RecordingDevice* device)
      : ForwardingChannel(std::move(next)), device_(device) {}

  Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) override {
    return Record(Make(Kind::kRead, offset, out.size()),
                  [this, offset, out] { return next().Read(offset, out); });
  }
  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override {
    Event event = Make(Kind::kWrite, offset, data.size());
    event.fua = flags == WriteFlags::kFua;
    return Record(event, [this, offset, data, flags] { return next().Write(offset, data, flags); });
  }
  Task<IoResult> Flush() override {
    return Record(Make(Kind::kFlush, 0, 0), [this] { return next().Flush(); });
  }
  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override {
    Event event = Make(Kind::kZero, offset, length);
    event.fua = Has(flags, ZeroFlags::kFua);
    event.no_unmap = Has(flags, ZeroFlags::kNoUnmap);
    event.fast_only = Has(flags, ZeroFlags::kFastOnly);
    return Record(event, [this, offset, length, flags] { return next().Zero(offset, length, flags); });
  }
  Task<IoResult> Discard(uint64_t offset, uint64_t length) override {
    return Record(Make(Kind::kDiscard, offset, length),
                  [this, offset, length] { return next().Discard(offset, length); });
  }
  Task<IoResult> Prefetch(uint64_t offset, uint64_t length) override {
    return Record(Make(Kind::kPrefetch, offset, length),
                  [this, offset, length] { return next().Prefetch(offset, length); });
  }
  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) override {
    return Record(Make(Kind::kExtents, offset, length),
                  [this, offset, length, out] { return next().Extents(offset, length, out); });
  }

 private:
  static Event Make(Kind kind, uint64_t offset, uint64_t length) {
    Event event = {};
    event.kind = kind;
    event.offset = offset;
    event.length = length;
    return event;
  }

  template <typename Next>
  Task<IoResult> Record(Event event, Next next) {
    event.id = device_->RecordStart(event);
    const IoResult result = co_await next();
    device_->RecordEnd(event, result);
    co_return result;
  }

  RecordingDevice* const device_;
};

RecordingDevice::RecordingDevice(std::shared_ptr<BlockDevice> next) : ForwardingDevice(std::move(next)) {}

absl::StatusOr<std::unique_ptr<BlockChannel>> RecordingDevice::OpenChannel(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<BlockChannel>> channel = next().OpenChannel(reactor);
  if (!channel.ok()) return channel.status();
  return std::make_unique<RecordingChannel>(*std::move(channel), this);
}

std::vector<RecordingDevice::Event> RecordingDevice::TakeEvents() {
  MutexLock lock(&mutex_);
  return std::exchange(events_, {});
}

uint64_t RecordingDevice::RecordStart(Event event) {
  MutexLock lock(&mutex_);
  event.id = next_id_++;
  event.phase = Phase::kStart;
  events_.push_back(event);
  return event.id;
}

void RecordingDevice::RecordEnd(Event event, IoResult result) {
  MutexLock lock(&mutex_);
  event.phase = Phase::kEnd;
  event.error = result.error;
  events_.push_back(event);
}

std::ostream& operator<<(std::ostream& out, const RecordingDevice::Event& event) {
  static constexpr const char* kNames[] = {"read",    "write",    "flush",  "zero",
                                           "discard", "prefetch", "extents"};
  out << (event.phase == RecordingDevice::Phase::kStart ? "start #" : "end #") << event.id << ' '
      << kNames[static_cast<int>(event.kind)] << ' ' << event.offset << '+' << event.length;
  if (event.fua) out << " fua";
  if (event.no_unmap) out << " no_unmap";
  if (event.fast_only) out << " fast_only";
  if (event.error != 0) out << " errno " << event.error;
  return out;
}

}  // namespace berth
