#include "nbd/context_selection.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"

namespace berth::nbd {

std::vector<MetaContext> OfferedContexts(const Export& served) {
  std::vector<MetaContext> offered;
  offered.push_back({1, kBaseAllocation, nullptr});
  for (std::shared_ptr<StatusContext>& source : served.device->contexts()) {
    const uint32_t id = static_cast<uint32_t>(offered.size() + 1);
    const std::string& name = source->name();
    offered.push_back({id, name, std::move(source)});
  }
  return offered;
}

std::vector<MetaContext> ResolveContexts(std::vector<MetaContext> selected,
                                         const std::vector<MetaContext>& offered, bool extended_headers) {
  for (MetaContext& context : selected) {
    const auto found = std::find_if(offered.begin(), offered.end(), [&context](const MetaContext& other) {
      return other.name == context.name;
    });
    if (found == offered.end()) return {};
    if (found->source != nullptr && found->source->wide() && !extended_headers) return {};
    context.source = found->source;
  }
  return selected;
}

ContextSelection SelectContexts(const std::vector<MetaContext>& offered, const MetaContextRequest& request,
                                bool set, bool extended_headers) {
  ContextSelection selection;
  for (const MetaContext& context : offered) {
    const auto named = [&](absl::string_view query) { return query == context.name; };
    const auto covered = [&](absl::string_view query) {
      return !set && absl::EndsWith(query, ":") && absl::StartsWith(context.name, query);
    };
    const std::vector<absl::string_view>& queries = request.queries;
    const bool by_name = std::any_of(queries.begin(), queries.end(), named);
    const bool selected =
        by_name || (!set && queries.empty()) || std::any_of(queries.begin(), queries.end(), covered);
    if (!selected) continue;
    if (context.source != nullptr && context.source->wide() && !extended_headers) {
      if (by_name) selection.too_wide = context.name;
      continue;
    }
    selection.contexts.push_back(context);
  }
  return selection;
}

}  // namespace berth::nbd
