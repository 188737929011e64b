// IoResult: the outcome of one operation on data: success, or an errno.
#ifndef BERTH_IMAGE_IO_IO_RESULT_H_
#define BERTH_IMAGE_IO_IO_RESULT_H_

#include <cstdint>

namespace berth {

// Trivially copyable, as the data path makes millions a second. A wrong result must not be dropped, hence
// nodiscard.
struct [[nodiscard]] IoResult {
  int32_t error = 0;  // 0, or a positive errno.

  static constexpr IoResult Ok() { return {}; }
  static constexpr IoResult Error(int error_number) { return {error_number}; }

  constexpr bool ok() const { return error == 0; }
  constexpr bool operator==(const IoResult&) const = default;
};

}  // namespace berth

#endif  // BERTH_IMAGE_IO_IO_RESULT_H_
