#include "tests/fakes/power_cut_device.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

namespace berth {
namespace {

constexpr uint64_t kSector = 512;

void Put(std::vector<uint8_t>& disk, uint64_t offset, absl::Span<const uint8_t> data) {
  if (offset + data.size() > disk.size()) disk.resize(offset + data.size());
  std::copy(data.begin(), data.end(), disk.begin() + static_cast<ptrdiff_t>(offset));
}

}  // namespace

class PowerCutChannel final : public ForwardingChannel {
 public:
  using Kind = PowerCutDevice::Event::Kind;

  PowerCutChannel(std::unique_ptr<BlockChannel> next, PowerCutDevice* device)
      : ForwardingChannel(std::move(next)), device_(device) {}

  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override {
    const uint64_t id = device_->Start(Kind::kWriteStart, offset, data);
    const IoResult result = co_await next().Write(offset, data, flags);
    device_->End(Kind::kWriteEnd, id);
    co_return result;
  }
  // What is not written yet may be zeroes already, or still what it was.
  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override {
    const std::vector<uint8_t> zeroes(length);
    const uint64_t id = device_->Start(Kind::kWriteStart, offset, zeroes);
    const IoResult result = co_await next().Zero(offset, length, flags);
    device_->End(Kind::kWriteEnd, id);
    co_return result;
  }
  Task<IoResult> Discard(uint64_t offset, uint64_t length) override {
    const std::vector<uint8_t> zeroes(length);
    const uint64_t id = device_->Start(Kind::kWriteStart, offset, zeroes);
    const IoResult result = co_await next().Discard(offset, length);
    device_->End(Kind::kWriteEnd, id);
    co_return result;
  }
  Task<IoResult> Flush() override {
    const uint64_t id = device_->Start(Kind::kFlushStart, 0, {});
    const IoResult result = co_await next().Flush();
    device_->End(Kind::kFlushEnd, id);
    co_return result;
  }

 private:
  PowerCutDevice* const device_;
};

PowerCutDevice::PowerCutDevice(std::shared_ptr<BlockDevice> next, std::vector<uint8_t> initial,
                               std::shared_ptr<PowerCutClock> clock)
    : ForwardingDevice(std::move(next)), initial_(std::move(initial)), clock_(std::move(clock)) {}

absl::StatusOr<std::unique_ptr<BlockChannel>> PowerCutDevice::OpenChannel(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<BlockChannel>> channel = next().OpenChannel(reactor);
  if (!channel.ok()) return channel.status();
  return std::make_unique<PowerCutChannel>(*std::move(channel), this);
}

absl::Status PowerCutDevice::Resize(uint64_t new_size) {
  absl::Status status = next().Resize(new_size);
  if (status.ok()) Start(Event::Kind::kResize, new_size, {});
  return status;
}

size_t PowerCutDevice::moments() const { return clock_->load(); }

uint64_t PowerCutDevice::Start(Event::Kind kind, uint64_t offset, absl::Span<const uint8_t> data) {
  MutexLock lock(&mutex_);
  events_.push_back({kind, next_id_, clock_->fetch_add(1), offset, {data.begin(), data.end()}});
  return next_id_++;
}

void PowerCutDevice::End(Event::Kind kind, uint64_t id) {
  MutexLock lock(&mutex_);
  events_.push_back({kind, id, clock_->fetch_add(1)});
}

std::vector<uint8_t> PowerCutDevice::DiskAfterCut(size_t moment, std::mt19937_64& random) const {
  MutexLock lock(&mutex_);
  // What had ended when the last successful flush began.
  std::set<uint64_t> ended;
  std::set<uint64_t> durable;
  std::vector<std::pair<uint64_t, std::set<uint64_t>>> flushes;
  for (const Event& event : events_) {
    if (event.moment >= moment) break;
    if (event.kind == Event::Kind::kWriteEnd) ended.insert(event.id);
    if (event.kind == Event::Kind::kFlushStart) flushes.emplace_back(event.id, ended);
    if (event.kind != Event::Kind::kFlushEnd) continue;
    for (const auto& [id, covered] : flushes) {
      if (id == event.id) durable.insert(covered.begin(), covered.end());
    }
  }
  std::vector<uint8_t> disk = initial_;
  std::vector<std::pair<uint64_t, absl::Span<const uint8_t>>> uncertain;
  for (const Event& event : events_) {
    if (event.moment >= moment) break;
    // A resize is durable when it returns (BlockDevice::Resize).
    if (event.kind == Event::Kind::kResize) disk.resize(event.offset);
    if (event.kind != Event::Kind::kWriteStart) continue;
    if (durable.count(event.id) != 0) {
      Put(disk, event.offset, event.data);
      continue;
    }
    for (uint64_t at = event.offset; at < event.offset + event.data.size();) {
      const uint64_t next = std::min(event.offset + event.data.size(), (at / kSector + 1) * kSector);
      uncertain.emplace_back(at, absl::MakeConstSpan(event.data).subspan(at - event.offset, next - at));
      at = next;
    }
  }
  // Each cut keeps another share, none and all among them.
  const uint64_t share = random() % 5;
  std::shuffle(uncertain.begin(), uncertain.end(), random);
  for (const auto& [offset, data] : uncertain) {
    if (random() % 4 < share) Put(disk, offset, data);
  }
  return disk;
}

}  // namespace berth
