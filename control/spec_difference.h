// Whether a repeated request is the same request.
#ifndef BERTH_CONTROL_SPEC_DIFFERENCE_H_
#define BERTH_CONTROL_SPEC_DIFFERENCE_H_

#include <string>

#include "google/protobuf/message.h"

namespace berth::control {

// Empty where the two mean the same (a field that is not set is its default), else what differs, for a
// message: "read_only: true -> false". Both are of one type. Pure.
std::string SpecDifference(const google::protobuf::Message& existing,
                           const google::protobuf::Message& requested);

}  // namespace berth::control

#endif  // BERTH_CONTROL_SPEC_DIFFERENCE_H_
