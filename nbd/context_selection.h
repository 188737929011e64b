// Which of an export's metadata contexts a client's queries mean (proto.md, "Metadata querying").
//
// Pure functions; any thread.
#ifndef BERTH_NBD_CONTEXT_SELECTION_H_
#define BERTH_NBD_CONTEXT_SELECTION_H_

#include <string>
#include <vector>

#include "nbd/export.h"
#include "nbd/negotiated.h"
#include "nbd/option_data.h"

namespace berth::nbd {

// base:allocation, and what the device offers. The IDs count from 1.
std::vector<MetaContext> OfferedContexts(const Export& served);

struct ContextSelection {
  std::vector<MetaContext> contexts;  // In the order of the offer.
  // A context that was asked for by its name and has more than 32 bits, where the client has no extended
  // headers; then it is told so.
  std::string too_wide;
};

// A query is a context's name. In a list (not `set`) one that ends in a colon stands for every name that
// begins with it, and no query at all for every name; where those meet a context that is too wide for the
// client, it is left out. What is unknown is ignored.
ContextSelection SelectContexts(const std::vector<MetaContext>& offered, const MetaContextRequest& request,
                                bool set, bool extended_headers);

// `selected`, without sources so far, as the export that was chosen in the end offers them. Empty where one
// of them is not there any more: another export may have taken the name since.
std::vector<MetaContext> ResolveContexts(std::vector<MetaContext> selected,
                                         const std::vector<MetaContext>& offered, bool extended_headers);

}  // namespace berth::nbd

#endif  // BERTH_NBD_CONTEXT_SELECTION_H_
