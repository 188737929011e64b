// Objects: what --object defines: secrets, TLS credentials, and who is let in.
#ifndef BERTH_CONTROL_BERTH_NBD_OBJECTS_H_
#define BERTH_CONTROL_BERTH_NBD_OBJECTS_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "control/berth_nbd/option_tree.h"
#include "image/filter/rate_limiter.h"
#include "image/secret/secret.h"
#include "nbd/client_identity.h"
#include "nbd/tls/credentials.h"

namespace berth::control {

// Whether a client may use the export. Thread-safe.
using Authorization = std::function<bool(const nbd::ClientIdentity&)>;

// Not thread-safe.
class Objects {
 public:
  // Each is `TYPE,id=ID,…` or the same in JSON. INVALID_ARGUMENT names the object, the property and what it
  // may be. Secrets are read now, the files of credentials when these are asked for. May block.
  static absl::StatusOr<Objects> Parse(const std::vector<std::string>& definitions);

  // NOT_FOUND where no object of that kind has the id; INVALID_ARGUMENT where it is for the other end of a
  // connection; else the errors of nbd::TlsCredentials.
  absl::StatusOr<std::shared_ptr<const nbd::TlsCredentials>> Credentials(const std::string& id,
                                                                         bool server) const;
  absl::StatusOr<Authorization> FindAuthorization(const std::string& id) const;
  absl::StatusOr<Secret> FindSecret(const std::string& id) const;
  absl::StatusOr<RateLimits> FindLimits(const std::string& id) const;

 private:
  absl::Status Add(const OptionTree& object);
  absl::Status AddSecret(const std::string& id, const OptionTree& object);

  std::map<std::string, OptionTree> credentials_;
  std::map<std::string, Authorization> authorizations_;
  std::map<std::string, RateLimits> limits_;
  std::map<std::string, Secret> secrets_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_OBJECTS_H_
