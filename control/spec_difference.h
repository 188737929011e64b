// Whether a repeated request is the same request.
#ifndef BERTH_CONTROL_SPEC_DIFFERENCE_H_
#define BERTH_CONTROL_SPEC_DIFFERENCE_H_

#include <string>

#include "berth/v1/attachments.pb.h"
#include "berth/v1/exports.pb.h"
#include "google/protobuf/message.h"

namespace berth::control {

// Empty where the two mean the same (a field that is not set is its default), else what differs, for a
// message: "read_only: true -> false". Both are of one type. Pure.
std::string SpecDifference(const google::protobuf::Message& existing,
                           const google::protobuf::Message& requested);

// The same, where a default that is written out ("cache: WRITEBACK") is the default too.
std::string SpecDifference(v1::ExportSpec existing, v1::ExportSpec requested);
std::string SpecDifference(v1::AttachmentSpec existing, v1::AttachmentSpec requested);

}  // namespace berth::control

#endif  // BERTH_CONTROL_SPEC_DIFFERENCE_H_
