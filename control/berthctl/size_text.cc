#include "control/berthctl/size_text.h"

#include <cstddef>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace berth::berthctl {
namespace {

constexpr absl::string_view kUnits = "KMGTP";

// What one of `unit` is worth, or 0 for no unit that is known.
uint64_t UnitBytes(absl::string_view unit) {
  const std::string upper = absl::AsciiStrToUpper(unit);
  absl::string_view rest = upper;
  if (rest.empty() || rest == "B") return 1;
  const size_t power = kUnits.find(rest.front());
  if (power == absl::string_view::npos) return 0;
  rest.remove_prefix(1);
  if (!rest.empty() && rest != "IB" && rest != "B") return 0;
  const uint64_t base = rest == "B" ? 1000 : 1024;
  uint64_t bytes = 1;
  for (size_t i = 0; i <= power; ++i) bytes *= base;
  return bytes;
}

}  // namespace

absl::StatusOr<uint64_t> ParseSize(absl::string_view text) {
  size_t digits = 0;
  while (digits < text.size() && absl::ascii_isdigit(static_cast<unsigned char>(text[digits]))) ++digits;
  uint64_t number = 0;
  const uint64_t unit = UnitBytes(text.substr(digits));
  if (digits == 0 || !absl::SimpleAtoi(text.substr(0, digits), &number) || unit == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "size '", text, "' is no whole number with an optional unit, as in 4096, 512M, 10G or 1MiB"));
  }
  if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / unit) {
    return absl::InvalidArgumentError(absl::StrCat("size '", text, "' is past the largest, 8 EiB - 1"));
  }
  return number * unit;
}

std::string FormatSize(uint64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes);
  static constexpr const char* kNames[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  size_t name = 0;
  // 1023.95 would be shown as 1024.0.
  while (value >= 1023.95 && name + 1 < sizeof(kNames) / sizeof(kNames[0])) {
    value /= 1024;
    ++name;
  }
  const std::string figures = absl::StrFormat("%.1f", value);
  return absl::StrCat(absl::StripSuffix(figures, ".0"), " ", kNames[name]);
}

std::string FormatExactSize(uint64_t bytes) {
  return bytes < 1024 ? absl::StrCat(bytes, " bytes")
                      : absl::StrCat(FormatSize(bytes), " (", bytes, " bytes)");
}

}  // namespace berth::berthctl
