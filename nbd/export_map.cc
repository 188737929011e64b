#include "nbd/export_map.h"

#include <utility>

namespace berth::nbd {

bool ExportMap::Add(std::shared_ptr<const Export> added) {
  MutexLock lock(&mutex_);
  std::string name = added->name;
  return exports_.emplace(std::move(name), std::move(added)).second;
}

std::shared_ptr<const Export> ExportMap::Remove(absl::string_view name) {
  MutexLock lock(&mutex_);
  auto found = exports_.find(std::string(name));
  if (found == exports_.end()) return nullptr;
  std::shared_ptr<const Export> removed = std::move(found->second);
  exports_.erase(found);
  return removed;
}

std::shared_ptr<const Export> ExportMap::Find(absl::string_view name) const {
  MutexLock lock(&mutex_);
  auto found = exports_.find(std::string(name));
  return found == exports_.end() ? nullptr : found->second;
}

std::vector<std::shared_ptr<const Export>> ExportMap::List() const {
  MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<const Export>> all;
  all.reserve(exports_.size());
  for (const auto& [name, served] : exports_) all.push_back(served);
  return all;
}

}  // namespace berth::nbd
