#include "image/qcow2/format/header_extension.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/io/big_endian.h"

namespace berth::qcow2 {
namespace {

constexpr uint32_t kEnd = 0;
constexpr uint32_t kBackingFormat = 0xe2792aca;
constexpr uint32_t kFeatureNames = 0x6803f857;
constexpr uint32_t kBitmaps = 0x23852875;
constexpr uint32_t kEncryption = 0x0537be77;
constexpr uint32_t kDataFile = 0x44415441;

constexpr size_t kFeatureBytes = 48;
constexpr size_t kFeatureNameBytes = 46;
constexpr size_t kBitmapsBytes = 24;
constexpr size_t kEncryptionBytes = 16;

absl::Status Broken(absl::string_view extension, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("broken qcow2 image: the header extension ", extension, " ", what));
}

absl::Status DecodeString(absl::Span<const uint8_t> data, absl::string_view name,
                          std::optional<std::string>* out) {
  if (out->has_value()) return Broken(name, "is there twice");
  std::string text(data.begin(), data.end());
  if (text.find('\0') != std::string::npos) return Broken(name, "contains a NUL byte");
  *out = std::move(text);
  return absl::OkStatus();
}

absl::Status DecodeFeatureNames(absl::Span<const uint8_t> data, Header* header) {
  if (!header->feature_names.empty()) return Broken("\"feature name table\"", "is there twice");
  for (; data.size() >= kFeatureBytes; data.remove_prefix(kFeatureBytes)) {
    const absl::Span<const uint8_t> name = data.subspan(2, kFeatureNameBytes);
    FeatureName feature = {data[0], data[1],
                           std::string(name.begin(), std::find(name.begin(), name.end(), 0))};
    // It ends up in messages.
    std::replace_if(
        feature.name.begin(), feature.name.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
    header->feature_names.push_back(std::move(feature));
  }
  return absl::OkStatus();
}

absl::Status DecodeBitmaps(absl::Span<const uint8_t> data, Header* header) {
  if (header->bitmaps.has_value()) return Broken("\"bitmaps\"", "is there twice");
  if (data.size() != kBitmapsBytes) {
    return Broken("\"bitmaps\"", absl::StrCat("has ", data.size(), " bytes, not ", kBitmapsBytes));
  }
  header->bitmaps = BitmapsExtension{Load32(&data[0]), Load64(&data[8]), Load64(&data[16])};
  if (header->bitmaps->count == 0) return Broken("\"bitmaps\"", "counts no bitmap");
  return absl::OkStatus();
}

absl::Status DecodeEncryption(absl::Span<const uint8_t> data, Header* header) {
  if (header->encryption.has_value()) return Broken("\"full disk encryption header\"", "is there twice");
  if (data.size() != kEncryptionBytes) {
    return Broken("\"full disk encryption header\"",
                  absl::StrCat("has ", data.size(), " bytes, not ", kEncryptionBytes));
  }
  header->encryption = EncryptionHeader{Load64(&data[0]), Load64(&data[8])};
  return absl::OkStatus();
}

absl::Status DecodeExtension(uint32_t type, absl::Span<const uint8_t> data, Header* header) {
  switch (type) {
    case kBackingFormat:
      return DecodeString(data, "\"backing file format\"", &header->backing_format);
    case kDataFile:
      return DecodeString(data, "\"external data file name\"", &header->data_file);
    case kFeatureNames:
      return DecodeFeatureNames(data, header);
    case kBitmaps:
      return DecodeBitmaps(data, header);
    case kEncryption:
      return DecodeEncryption(data, header);
    default:
      header->unknown_extensions.push_back({type, {data.begin(), data.end()}});
      return absl::OkStatus();
  }
}

void Append(uint32_t type, absl::Span<const uint8_t> data, std::vector<uint8_t>* bytes) {
  const size_t at = bytes->size();
  bytes->resize(at + 8 + (data.size() + 7) / 8 * 8);
  Store32(&(*bytes)[at], type);
  Store32(&(*bytes)[at + 4], static_cast<uint32_t>(data.size()));
  std::copy(data.begin(), data.end(), bytes->begin() + static_cast<ptrdiff_t>(at) + 8);
}

void Append(uint32_t type, const std::string& text, std::vector<uint8_t>* bytes) {
  Append(type, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(text.data()), text.size()), bytes);
}

}  // namespace

absl::Status DecodeExtensions(absl::Span<const uint8_t> area, Header* header) {
  while (area.size() >= 8) {
    const uint32_t type = Load32(&area[0]);
    const uint32_t length = Load32(&area[4]);
    if (type == kEnd) break;
    area.remove_prefix(8);
    if (length > area.size()) {
      return Broken(absl::StrCat("0x", absl::Hex(type, absl::kZeroPad8)),
                    absl::StrCat("has ", length, " bytes, and only ", area.size(), " are left for it"));
    }
    if (absl::Status status = DecodeExtension(type, area.subspan(0, length), header); !status.ok()) {
      return status;
    }
    area.remove_prefix(std::min<size_t>(area.size(), (size_t{length} + 7) / 8 * 8));
  }
  return absl::OkStatus();
}

void AppendExtensions(const Header& header, std::vector<uint8_t>* bytes) {
  if (header.backing_format.has_value()) Append(kBackingFormat, *header.backing_format, bytes);
  if (header.data_file.has_value()) Append(kDataFile, *header.data_file, bytes);
  if (header.encryption.has_value()) {
    std::vector<uint8_t> data(kEncryptionBytes);
    Store64(&data[0], header.encryption->offset);
    Store64(&data[8], header.encryption->length);
    Append(kEncryption, data, bytes);
  }
  if (header.bitmaps.has_value()) {
    std::vector<uint8_t> data(kBitmapsBytes);
    Store32(&data[0], header.bitmaps->count);
    Store64(&data[8], header.bitmaps->directory_size);
    Store64(&data[16], header.bitmaps->directory_offset);
    Append(kBitmaps, data, bytes);
  }
  if (!header.feature_names.empty()) {
    std::vector<uint8_t> data;
    for (const FeatureName& feature : header.feature_names) {
      data.push_back(feature.type);
      data.push_back(feature.bit);
      std::string name = feature.name;
      name.resize(kFeatureNameBytes);
      data.insert(data.end(), name.begin(), name.end());
    }
    Append(kFeatureNames, data, bytes);
  }
  for (const UnknownExtension& unknown : header.unknown_extensions) Append(unknown.type, unknown.data, bytes);
  Append(kEnd, absl::Span<const uint8_t>(), bytes);
}

}  // namespace berth::qcow2
