#include "nbd/option_data.h"

#include <cstddef>

#include "absl/strings/str_cat.h"
#include "nbd/protocol_string.h"

namespace berth::nbd {
namespace {

// Takes numbers and strings off the front of an option's data.
class Reader {
 public:
  explicit Reader(absl::Span<const uint8_t> data) : rest_(data) {}

  bool empty() const { return rest_.empty(); }
  size_t size() const { return rest_.size(); }

  bool Take16(uint16_t* value) {
    if (rest_.size() < 2) return false;
    *value = Load16(rest_.data());
    rest_.remove_prefix(2);
    return true;
  }
  bool Take32(uint32_t* value) {
    if (rest_.size() < 4) return false;
    *value = Load32(rest_.data());
    rest_.remove_prefix(4);
    return true;
  }
  // A length of 32 bits and as many bytes.
  bool TakeString(absl::string_view* text) {
    uint32_t length = 0;
    if (!Take32(&length) || length > rest_.size()) return false;
    *text = absl::string_view(reinterpret_cast<const char*>(rest_.data()), length);
    rest_.remove_prefix(length);
    return true;
  }

 private:
  absl::Span<const uint8_t> rest_;
};

absl::Status CheckQuery(absl::string_view query) {
  if (query.size() > kMaxStringSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("a metadata query has ", query.size(), " bytes, of at most ", kMaxStringSize));
  }
  if (!IsProtocolString(query)) {
    return absl::InvalidArgumentError(absl::StrCat("metadata query ", Quoted(query), " is not UTF-8 text"));
  }
  const size_t colon = query.find(':');
  if (colon == absl::string_view::npos || colon == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata query ", Quoted(query), " does not begin with a namespace and a colon"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckExportName(absl::string_view name) {
  if (name.size() > kMaxStringSize) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the export's name has ", name.size(), " bytes, of at most ", kMaxStringSize));
  }
  if (!IsProtocolString(name)) {
    return absl::InvalidArgumentError(absl::StrCat("the export's name ", Quoted(name), " is not UTF-8 text"));
  }
  return absl::OkStatus();
}

absl::StatusOr<InfoRequest> ParseInfoRequest(absl::Span<const uint8_t> data) {
  Reader reader(data);
  InfoRequest request;
  uint16_t count = 0;
  if (!reader.TakeString(&request.name) || !reader.Take16(&count) || reader.size() != size_t{count} * 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("the lengths in the request do not add up to its ", data.size(), " bytes"));
  }
  for (uint16_t type = 0; reader.Take16(&type);) {
    // Others than these are ignored, as the specification demands.
    switch (static_cast<InfoType>(type)) {
      case InfoType::kName:
        request.wants_name = true;
        break;
      case InfoType::kDescription:
        request.wants_description = true;
        break;
      case InfoType::kBlockSize:
        request.wants_block_size = true;
        break;
      case InfoType::kExport:  // Always sent.
        break;
    }
  }
  if (absl::Status status = CheckExportName(request.name); !status.ok()) return status;
  return request;
}

absl::StatusOr<MetaContextRequest> ParseMetaContextRequest(absl::Span<const uint8_t> data) {
  Reader reader(data);
  MetaContextRequest request;
  uint32_t count = 0;
  bool well_formed = reader.TakeString(&request.name) && reader.Take32(&count);
  for (uint32_t i = 0; i < count && well_formed; ++i) {
    absl::string_view query;
    well_formed = reader.TakeString(&query);
    request.queries.push_back(query);
  }
  if (!well_formed || !reader.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the lengths in the request do not add up to its ", data.size(), " bytes"));
  }
  if (absl::Status status = CheckExportName(request.name); !status.ok()) return status;
  for (absl::string_view query : request.queries) {
    if (absl::Status status = CheckQuery(query); !status.ok()) return status;
  }
  return request;
}

}  // namespace berth::nbd
