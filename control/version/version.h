// The version that the programs and the metrics show.
#ifndef BERTH_CONTROL_VERSION_VERSION_H_
#define BERTH_CONTROL_VERSION_VERSION_H_

namespace berth::control {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace berth::control

#endif  // BERTH_CONTROL_VERSION_VERSION_H_
