#include "tests/interop/client_commands.h"

namespace berth::testing {
namespace {

void Append(std::vector<std::string>* to, const std::vector<std::string>& more) {
  to->insert(to->end(), more.begin(), more.end());
}

}  // namespace

std::vector<ClientCommand> LookingCommands(const std::string& uri, const std::string& qemu,
                                           const std::vector<std::string>& qemu_options) {
  std::vector<ClientCommand> commands;
  const auto add = [&](const std::string& name, std::vector<std::string> arguments) {
    arguments.push_back(uri);
    commands.push_back({name, std::move(arguments)});
  };
  add("nbdinfo", {"nbdinfo"});
  add("nbdinfo --json", {"nbdinfo", "--json"});
  add("nbdinfo --no-content", {"nbdinfo", "--no-content"});
  add("nbdinfo --size", {"nbdinfo", "--size"});
  add("nbdinfo --list", {"nbdinfo", "--list"});
  add("nbdinfo --list --json", {"nbdinfo", "--list", "--json"});
  add("nbdinfo --map", {"nbdinfo", "--map"});
  add("nbdinfo --map --json", {"nbdinfo", "--map", "--json"});
  add("nbdinfo --map --totals", {"nbdinfo", "--map", "--totals"});
  add("nbdinfo --map --totals --json", {"nbdinfo", "--map", "--totals", "--json"});
  add("nbdinfo --map=base:allocation", {"nbdinfo", "--map=base:allocation"});
  add("nbdinfo --map=none", {"nbdinfo", "--map=x-none:none"});
  for (const char* can : {"cache", "connect", "df", "fast-zero", "flush", "fua", "multi-conn", "read",
                          "structured-reply", "trim", "write", "zero"}) {
    add(std::string("nbdinfo --can ") + can, {"nbdinfo", "--can", can});
  }
  for (const char* is : {"read-only", "rotational", "tls"}) {
    add(std::string("nbdinfo --is ") + is, {"nbdinfo", "--is", is});
  }
  add("nbddump", {"nbddump"});

  const auto add_qemu = [&](const std::string& name, std::vector<std::string> arguments) {
    Append(&arguments, qemu_options);
    // With --image-opts the format is part of the options.
    if (qemu_options.empty()) Append(&arguments, {"-f", "raw"});
    arguments.push_back(qemu);
    commands.push_back({name, std::move(arguments)});
  };
  add_qemu("qemu-img info", {"qemu-img", "info", "--output=json"});
  add_qemu("qemu-img map", {"qemu-img", "map", "--output=json"});
  add_qemu("qemu-img measure", {"qemu-img", "measure", "-O", "qcow2"});
  return commands;
}

std::vector<ClientCommand> CopyingCommands(const std::string& uri, const std::string& folder) {
  const std::vector<std::vector<std::string>> forms = {
      {"nbdcopy"},
      {"nbdcopy", "--connections=4", "--requests=64"},
      {"nbdcopy", "--connections=4", "--threads=4", "--request-size=4194304"},
      {"nbdcopy", "--synchronous", "--request-size=65536"},
      {"nbdcopy", "--no-extents", "--sparse=0"},
      {"nbdcopy", "--allocated"},
  };
  std::vector<ClientCommand> commands;
  for (std::vector<std::string> form : forms) {
    std::string name;
    for (const std::string& argument : form) name += (name.empty() ? "" : " ") + argument;
    const std::string file = folder + "/copy-" + std::to_string(commands.size());
    Append(&form, {uri, file});
    commands.push_back({name, std::move(form)});
  }
  return commands;
}

std::vector<ClientCommand> FillingCommands(const std::string& file, const std::string& uri) {
  const std::vector<std::vector<std::string>> forms = {
      {"nbdcopy", "--flush"},
      {"nbdcopy", "--connections=4", "--requests=64", "--flush"},
      {"nbdcopy", "--synchronous", "--request-size=65536", "--flush"},
      {"nbdcopy", "--allocated", "--flush"},
      {"nbdcopy", "--sparse=0", "--no-extents", "--flush"},
  };
  std::vector<ClientCommand> commands;
  for (std::vector<std::string> form : forms) {
    std::string name;
    for (const std::string& argument : form) name += (name.empty() ? "" : " ") + argument;
    Append(&form, {file, uri});
    commands.push_back({name, std::move(form)});
  }
  return commands;
}

}  // namespace berth::testing
