#include "tests/interop/program.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>

#include "gtest/gtest.h"

namespace berth::testing {
namespace {

using TemporaryFile = std::unique_ptr<FILE, decltype(&fclose)>;

std::string Content(FILE* file) {
  std::string content;
  rewind(file);
  char buffer[4096];
  for (size_t count; (count = fread(buffer, 1, sizeof(buffer), file)) > 0;) content.append(buffer, count);
  return content;
}

}  // namespace

ProgramResult RunProgram(const std::vector<std::string>& arguments, int seconds) {
  const TemporaryFile output(tmpfile(), &fclose);
  const TemporaryFile errors(tmpfile(), &fclose);
  if (output == nullptr || errors == nullptr) return {.errors = "no temporary file"};

  std::vector<std::string> command = {"timeout", "--kill-after=5", std::to_string(seconds)};
  command.insert(command.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& argument : command) argv.push_back(argument.data());
  argv.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", 0, 0);
  posix_spawn_file_actions_adddup2(&actions, fileno(output.get()), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, fileno(errors.get()), STDERR_FILENO);
  pid_t child = 0;
  const int spawned = posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (spawned != 0) return {.errors = "posix_spawn failed"};
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
  }
  return {.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
          .output = Content(output.get()),
          .errors = Content(errors.get())};
}

std::string RunToSuccess(const std::vector<std::string>& arguments, int seconds) {
  const ProgramResult result = RunProgram(arguments, seconds);
  std::string command;
  for (const std::string& argument : arguments) command += argument + " ";
  EXPECT_EQ(result.exit_code, 0) << command << ": " << result.errors << result.output;
  return result.output;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  std::string content(file ? static_cast<size_t>(file.tellg()) : 0, '\0');
  file.seekg(0);
  file.read(content.data(), static_cast<std::streamsize>(content.size()));
  return content;
}

void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
}

std::string RandomBytes(size_t size, unsigned seed) {
  std::mt19937_64 random(seed);
  std::string bytes(size, '\0');
  for (size_t at = 0; at < size; at += sizeof(uint64_t)) {
    const uint64_t word = random();
    memcpy(bytes.data() + at, &word, std::min(sizeof(word), size - at));
  }
  return bytes;
}

}  // namespace berth::testing
