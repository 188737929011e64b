// Whole lists, page by page.
#ifndef BERTH_CONTROL_BERTHCTL_LISTING_H_
#define BERTH_CONTROL_BERTHCTL_LISTING_H_

#include "berth/v1/attachments.pb.h"
#include "berth/v1/exports.pb.h"
#include "berth/v1/operations.pb.h"
#include "control/berthctl/exit_code.h"

namespace berth::berthctl {

class Server;

// Each says on the console why it failed.
ExitCode ListExports(Server& server, v1::ListExportsResponse* all);
ExitCode ListAttachments(Server& server, v1::ListAttachmentsResponse* all);
ExitCode ListOperations(Server& server, v1::ListOperationsResponse* all);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_LISTING_H_
