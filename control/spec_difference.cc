#include "control/spec_difference.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_replace.h"
#include "control/export_block_sizes.h"
#include "control/utf8.h"
#include "google/protobuf/util/message_differencer.h"

namespace berth::control {
namespace {

using google::protobuf::Message;

void LeaveOutDefaults(v1::ExportSpec* spec) {
  v1::Image* image = spec->mutable_image();
  if (image->cache() == v1::CACHE_MODE_WRITEBACK) image->clear_cache();
  if (image->discard() == v1::DISCARD_MODE_UNMAP) image->clear_discard();
  control::LeaveOutDefaults(spec->mutable_block_sizes());
}

void LeaveOutDefaults(v1::AttachmentSpec* spec) {
  if (spec->block_size() == 512) spec->clear_block_size();
}

}  // namespace

std::string SpecDifference(const google::protobuf::Message& existing,
                           const google::protobuf::Message& requested) {
  constexpr size_t kMaxBytes = 400;
  google::protobuf::util::MessageDifferencer differencer;
  differencer.set_message_field_comparison(google::protobuf::util::MessageDifferencer::EQUIVALENT);
  std::string difference;
  differencer.ReportDifferencesToString(&difference);
  if (differencer.Compare(existing, requested)) return "";
  absl::StripAsciiWhitespace(&difference);
  difference = absl::StrReplaceAll(difference, {{"\n", "; "}});
  return ValidUtf8(difference, kMaxBytes);
}

std::string SpecDifference(v1::ExportSpec existing, v1::ExportSpec requested) {
  LeaveOutDefaults(&existing);
  LeaveOutDefaults(&requested);
  return SpecDifference(static_cast<const Message&>(existing), static_cast<const Message&>(requested));
}

std::string SpecDifference(v1::AttachmentSpec existing, v1::AttachmentSpec requested) {
  LeaveOutDefaults(&existing);
  LeaveOutDefaults(&requested);
  return SpecDifference(static_cast<const Message&>(existing), static_cast<const Message&>(requested));
}

}  // namespace berth::control
