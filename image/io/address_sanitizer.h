// Whether this build has the address sanitizer.
#ifndef BERTH_IMAGE_IO_ADDRESS_SANITIZER_H_
#define BERTH_IMAGE_IO_ADDRESS_SANITIZER_H_

namespace berth {

// Pools do not pool where this is true: the sanitizer would miss the use of a piece after its end.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kAddressSanitizer = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif
#else
inline constexpr bool kAddressSanitizer = false;
#endif

}  // namespace berth

#endif  // BERTH_IMAGE_IO_ADDRESS_SANITIZER_H_
