#include "control/spec_difference.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_replace.h"
#include "control/utf8.h"
#include "google/protobuf/util/message_differencer.h"

namespace berth::control {

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

}  // namespace berth::control
