#include "control/status_details.h"

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"

namespace berth::control {
namespace {

// All details of an error travel in HTTP/2 trailers, of which a client accepts 8 KiB.
constexpr size_t kMaxQuotedBytes = 256;

template <typename Detail>
std::string TypeUrl() {
  return absl::StrCat("type.googleapis.com/", std::string(Detail::descriptor()->full_name()));
}

template <typename Detail>
void Attach(const Detail& detail, absl::Status* status) {
  status->SetPayload(TypeUrl<Detail>(), absl::Cord(detail.SerializeAsString()));
}

std::string ToString(absl::string_view text) { return std::string(text.data(), text.size()); }

}  // namespace

std::string Quoted(absl::string_view text) {
  const bool cut = text.size() > kMaxQuotedBytes;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMaxQuotedBytes)), "\"",
                      cut ? absl::StrCat("… (", text.size(), " bytes)") : "");
}

absl::Status WithReason(absl::Status status, absl::string_view reason) {
  if (status.ok() || status.GetPayload(TypeUrl<google::rpc::ErrorInfo>())) return status;
  google::rpc::ErrorInfo info;
  info.set_reason(ToString(reason));
  info.set_domain(ToString(kErrorDomain));
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
  violation->set_field(ToString(field));
  violation->set_description(ToString(description));
  Attach(detail, &status);
  return WithReason(status, "INVALID_FIELD");
}

namespace {

absl::Status WithResource(absl::Status status, absl::string_view type, absl::string_view name,
                          absl::string_view description) {
  google::rpc::ResourceInfo detail;
  detail.set_resource_type(ToString(type));
  detail.set_resource_name(ToString(name.substr(0, kMaxQuotedBytes)));
  detail.set_description(ToString(description));
  Attach(detail, &status);
  return status;
}

}  // namespace

absl::Status MissingResource(absl::string_view type, absl::string_view name) {
  return MissingResource(type, name, absl::StrCat("there is no ", type, " ", Quoted(name)));
}

absl::Status MissingResource(absl::string_view type, absl::string_view name, absl::string_view description) {
  return WithReason(WithResource(absl::NotFoundError(description), type, name, description), "NOT_FOUND");
}

absl::Status ExistingResource(absl::string_view type, absl::string_view name, absl::string_view description) {
  return WithReason(WithResource(absl::AlreadyExistsError(description), type, name, description),
                    "ALREADY_EXISTS");
}

absl::Status FailedCondition(absl::string_view reason, absl::string_view subject,
                             absl::string_view description) {
  absl::Status status = absl::FailedPreconditionError(description);
  google::rpc::PreconditionFailure detail;
  auto* violation = detail.add_violations();
  violation->set_type(ToString(reason));
  violation->set_subject(ToString(subject));
  violation->set_description(ToString(description));
  Attach(detail, &status);
  return WithReason(status, reason);
}

absl::Status LimitReached(absl::string_view limit, absl::string_view description) {
  absl::Status status = absl::ResourceExhaustedError(description);
  google::rpc::ErrorInfo info;
  info.set_reason("LIMIT_REACHED");
  info.set_domain(ToString(kErrorDomain));
  (*info.mutable_metadata())["limit"] = ToString(limit);
  Attach(info, &status);
  return status;
}

}  // namespace berth::control
