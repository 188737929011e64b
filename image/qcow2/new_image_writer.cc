#include "image/qcow2/new_image_writer.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "image/io/io_result.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "image/qcow2/metadata_reader.h"

namespace berth::qcow2 {
namespace {

constexpr uint64_t kSectorBytes = 512;
constexpr uint64_t kChunkBytes = uint64_t{1} << 20;

bool IsZero(absl::Span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

// Clusters [first, end), in large writes.
Task<IoResult> WriteTables(BlockChannel& channel, const NewImage& image, uint64_t first, uint64_t end,
                           const Progress& progress) {
  const uint64_t cluster = image.header().cluster_size();
  const uint64_t at_once = std::max<uint64_t>(kChunkBytes / cluster, 1);
  std::vector<uint8_t> chunk;
  for (uint64_t at = first; at < end; at += at_once) {
    if (progress.cancelled()) co_return IoResult::Error(ECANCELED);
    const uint64_t count = std::min(at_once, end - at);
    chunk.resize(count * cluster);
    for (uint64_t i = 0; i < count; ++i) {
      image.Fill(at + i, absl::MakeSpan(chunk).subspan(i * cluster, cluster));
    }
    if (IsZero(chunk)) continue;
    const IoResult result = co_await channel.Write(at * cluster, chunk, WriteFlags::kNone);
    if (!result.ok()) co_return result;
  }
  co_return IoResult::Ok();
}

Task<IoResult> WriteAll(BlockChannel& channel, const NewImage& image, const Progress& progress) {
  std::vector<uint8_t> first(image.header().cluster_size());
  image.Fill(0, absl::MakeSpan(first));
  IoResult result = co_await WriteTables(channel, image, 1, image.metadata_clusters(), progress);
  const absl::Span<const uint8_t> behind = absl::MakeConstSpan(first).subspan(kSectorBytes);
  if (result.ok() && !IsZero(behind)) {
    result = co_await channel.Write(kSectorBytes, behind, WriteFlags::kNone);
  }
  if (result.ok()) result = co_await channel.Flush();
  // What makes it an image is one sector, there or not.
  const absl::Span<const uint8_t> sector = absl::MakeConstSpan(first).subspan(0, kSectorBytes);
  if (result.ok()) result = co_await channel.Write(0, sector, WriteFlags::kNone);
  if (result.ok()) result = co_await channel.Flush();
  co_return result;
}

}  // namespace

absl::Status WriteNewImage(BlockDevice& file, const NewImage& image, const Progress& progress) {
  if (absl::Status status = file.Resize(image.file_size()); !status.ok()) return status;
  const auto write = [&](Reactor&, BlockChannel& channel) { return WriteAll(channel, image, progress); };
  const absl::StatusOr<IoResult> result = RunOnFile(file, write);
  if (!result.ok()) return result.status();
  if (result->error == ECANCELED) return absl::CancelledError("making the image was cancelled");
  if (!result->ok()) return absl::ErrnoToStatus(result->error, "cannot write the new image's tables");
  return absl::OkStatus();
}

}  // namespace berth::qcow2
