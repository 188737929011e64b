#include "control/status_details.h"

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "control/utf8.h"
#include "google/rpc/error_details.pb.h"

namespace berth::control {
namespace {

// All details of an error travel in HTTP/2 trailers, of which a client accepts 8 KiB.
constexpr size_t kMaxQuotedBytes = 256;
constexpr size_t kMaxNameBytes = 512;
// As long as the message itself may be, so that the two stay the same text.
constexpr size_t kMaxDescriptionBytes = 1024;

template <typename Detail>
std::string TypeUrl() {
  return absl::StrCat("type.googleapis.com/", std::string(Detail::descriptor()->full_name()));
}

template <typename Detail>
void Attach(const Detail& detail, absl::Status* status) {
  status->SetPayload(TypeUrl<Detail>(), absl::Cord(detail.SerializeAsString()));
}

// What stands in a detail: bounded, so that each finds room beside the message.
std::string ToText(absl::string_view text) { return ValidUtf8(text, kMaxNameBytes); }
std::string ToDescription(absl::string_view text) { return ValidUtf8(text, kMaxDescriptionBytes); }

}  // namespace

std::string Quoted(absl::string_view text) {
  const bool cut = text.size() > kMaxQuotedBytes;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMaxQuotedBytes)), "\"",
                      cut ? absl::StrCat("… (", text.size(), " bytes)") : "");
}

absl::Status WithReason(absl::Status status, absl::string_view reason) {
  if (status.ok() || status.GetPayload(TypeUrl<google::rpc::ErrorInfo>())) return status;
  google::rpc::ErrorInfo info;
  info.set_reason(ToText(reason));
  info.set_domain(ToText(kErrorDomain));
  Attach(info, &status);
  return status;
}

std::string ReasonOf(const absl::Status& status) {
  const auto payload = status.GetPayload(TypeUrl<google::rpc::ErrorInfo>());
  google::rpc::ErrorInfo info;
  if (!payload || !info.ParseFromString(std::string(*payload))) return "";
  return info.reason();
}

absl::Status InvalidField(absl::string_view field, absl::string_view description) {
  absl::Status status = absl::InvalidArgumentError(absl::StrCat(field, ": ", description));
  google::rpc::BadRequest detail;
  auto* violation = detail.add_field_violations();
  violation->set_field(ToText(field));
  violation->set_description(ToDescription(description));
  Attach(detail, &status);
  return WithReason(status, "INVALID_FIELD");
}

absl::Status WithMovedField(const absl::Status& status, absl::string_view from, absl::string_view to) {
  const auto payload = status.GetPayload(TypeUrl<google::rpc::BadRequest>());
  google::rpc::BadRequest detail;
  if (!payload || !detail.ParseFromString(std::string(*payload)) || detail.field_violations_size() != 1) {
    return status;
  }
  const auto& violation = detail.field_violations(0);
  absl::string_view field = violation.field();
  if (!absl::ConsumePrefix(&field, from)) return status;
  return InvalidField(absl::StrCat(to, field), violation.description());
}

absl::Status WithResource(absl::Status status, absl::string_view type, absl::string_view name) {
  google::rpc::ResourceInfo detail;
  detail.set_resource_type(ToText(type));
  detail.set_resource_name(ToText(name));
  detail.set_description(ToDescription(status.message()));
  Attach(detail, &status);
  return status;
}

absl::Status MissingResource(absl::string_view type, absl::string_view name) {
  return MissingResource(type, name, absl::StrCat("there is no ", type, " ", Quoted(name)));
}

absl::Status MissingResource(absl::string_view type, absl::string_view name, absl::string_view description) {
  return WithReason(WithResource(absl::NotFoundError(description), type, name), "NOT_FOUND");
}

absl::Status ExistingResource(absl::string_view type, absl::string_view name, absl::string_view description) {
  return WithReason(WithResource(absl::AlreadyExistsError(description), type, name), "ALREADY_EXISTS");
}

absl::Status FailedCondition(absl::string_view reason, absl::string_view subject,
                             absl::string_view description) {
  absl::Status status = absl::FailedPreconditionError(description);
  google::rpc::PreconditionFailure detail;
  auto* violation = detail.add_violations();
  violation->set_type(ToText(reason));
  violation->set_subject(ToText(subject));
  violation->set_description(ToDescription(description));
  Attach(detail, &status);
  return WithReason(status, reason);
}

absl::Status LimitReached(absl::string_view limit, absl::string_view description) {
  absl::Status status = absl::ResourceExhaustedError(description);
  google::rpc::ErrorInfo info;
  info.set_reason("LIMIT_REACHED");
  info.set_domain(ToText(kErrorDomain));
  (*info.mutable_metadata())["limit"] = ToText(limit);
  Attach(info, &status);
  return status;
}

}  // namespace berth::control
