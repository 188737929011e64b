# Completion of berth-nbd in bash. Install as /usr/share/bash-completion/completions/berth-nbd.
_berth_nbd() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} value
  # Bash splits at `=`: --cache = MODE.
  [[ $current == = ]] && current=
  [[ $previous == = ]] && previous=${COMP_WORDS[COMP_CWORD - 2]}
  case $previous in
    -f | --format) value="raw qcow2" ;;
    --cache) value="none writeback writethrough directsync unsafe" ;;
    --aio) value="threads native io_uring" ;;
    --discard) value="ignore unmap" ;;
    --detect-zeroes) value="off on unmap" ;;
    --object) value="secret,id= tls-creds-x509,id= tls-creds-psk,id= tls-creds-anon,id= throttle-group,id= authz-simple,id= authz-list,id=
      authz-list-file,id=" ;;
    -c | --connect) value="auto $(compgen -G '/dev/nbd*')" ;;
    -T | --trace) value="help nbd_*" ;;
    *)
      if [[ $current == -* ]]; then
        value="--help --version --port --bind --socket --shared --persistent --export-name --description --handshake-limit
          --selinux-label --offset --partition --read-only --allocation-depth --bitmap --snapshot --load-snapshot --format
          --image-opts --cache --nocache --aio --discard --detect-zeroes --connect --disconnect --connections --object
          --tls-creds --tls-authz --tls-hostname --list --fork --pid-file --verbose --trace --json --metrics"
      else
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
      fi
      ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$value" -- "$current")
}
complete -o filenames -F _berth_nbd berth-nbd
