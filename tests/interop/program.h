// RunProgram: another program, run to its end with a deadline.
#ifndef BERTH_TESTS_INTEROP_PROGRAM_H_
#define BERTH_TESTS_INTEROP_PROGRAM_H_

#include <string>
#include <vector>

namespace berth::testing {

struct ProgramResult {
  int exit_code = -1;       // 124 where the deadline ended it, 127 where there is no such program.
  std::string output = "";  // Standard output.
  std::string errors = "";  // Standard error.
};

// Runs `arguments[0]`, found in PATH, and kills it after `seconds`. Any thread.
ProgramResult RunProgram(const std::vector<std::string>& arguments, int seconds = 60);

// What the program printed; a failed expectation where it ends with anything but 0.
std::string RunToSuccess(const std::vector<std::string>& arguments, int seconds = 60);

std::string ReadFile(const std::string& path);
void WriteFile(const std::string& path, const std::string& content);
// Bytes without a pattern, the same for the same seed.
std::string RandomBytes(size_t size, unsigned seed);

}  // namespace berth::testing

#endif  // BERTH_TESTS_INTEROP_PROGRAM_H_
