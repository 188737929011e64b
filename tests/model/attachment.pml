// The life of an attachment, with a crash at any step: berthd, its record on disk, the kernel's devices, somebody
// else's program, and one block that is written again and again.
//
// The names are the code's: phases are AttachmentPhase of proto/berth/state/v1/state.proto, steps are functions of
// control/attachment*.cc and control/attachment_table.cc, and what the kernel does is docs of netlink/nbd_kernel.h.
// What must hold stands as assertions:
//   * No acknowledged attach is forgotten: after every start the device is there, ours, and served.
//   * No device of somebody else is touched, whatever number our record holds.
//   * No write of a dead epoch lands after a newer one was acknowledged.
//
// NO_FENCE, NO_INTENT and BY_NUMBER each leave out what one of them rests on; attachment_test.sh expects that the
// verifier finds the fault then.

#define DEVICES 2
#define NOBODY 0
#define OURS 1     // Carries our backend identifier.
#define FOREIGN 2
#define NO_DEVICE DEVICES
#define FIRST_WORKER 1  // Its number as a process.

mtype = { NONE, CONNECTING, CONNECTED, DISCONNECTING };

// ---- On disk: replaced whole.
mtype phase = NONE;
byte record_index = NO_DEVICE;

// ---- The kernel.
byte owner[DEVICES];
byte served[DEVICES];  // The epoch of its living connections; 0 without one: requests wait.
byte in_flight;        // A write that the file system waits for; 0 without one.
byte sent_to;          // The epoch that it was sent to last.
byte acknowledged;     // The newest write that was answered.

// ---- The image.
byte image;
// Writes that workers of the kernel carry out, of the process that lives and of one that is dead; epoch 0 without one.
byte io_value[2], io_epoch[2];

// ---- berthd.
bool crash, ready;
byte epoch;          // Of the process that runs: grows with each start.
bool attach_wanted, detach_wanted;
bool attached;       // The attach was acknowledged, and no detach was asked for since.

byte crashes, cycles, strangers, writes;
bool looking;       // Somewhere between FindDevice() and what follows from it.
bool disconnected;  // Root has disconnected ours since the last start began.

// What netlink's calls may do to a device: never with one of somebody else.
inline Disconnect(i) {
  atomic {
    assert(owner[i] != FOREIGN);
    owner[i] = NOBODY;
    served[i] = 0;
    in_flight = 0;  // Its users get errors.
    sent_to = 0
  }
}

// The same by root.
inline Release(i) {
  owner[i] = NOBODY;
  served[i] = 0;
  in_flight = 0;
  sent_to = 0;
  disconnected = true
}

inline Reconfigure(i) {
  atomic {
    // The kernel has seen that the old connections are dead; and refuses an identifier that is not the device's.
    if
    :: owner[i] == OURS && served[i] == 0 -> served[i] = epoch
    :: else
    fi
  }
}

// Ours, wherever it is. DISCONNECT has no identifier: where root takes ours away and another program its number
// between this look and that call, it is the other's that goes. Nothing in the kernel's interface prevents it, so
// the model leaves that moment out.
inline FindDevice(i) {
  atomic {
    looking = true;
    i = NO_DEVICE;
#ifdef BY_NUMBER
    if
    :: phase == CONNECTED && record_index < DEVICES && owner[record_index] != NOBODY -> i = record_index
    :: else
    fi;
#endif
    if
    :: i == NO_DEVICE && owner[0] == OURS -> i = 0
    :: i == NO_DEVICE && owner[1] == OURS -> i = 1
    :: else
    fi
  }
}

inline Persist(p, i) { d_step { phase = p; record_index = i } }

// CONNECT without a number: the kernel chooses. It may take none.
inline Connect(i) {
  atomic {
    i = NO_DEVICE;
    if
    :: owner[0] == NOBODY -> i = 0
    :: owner[0] != NOBODY && owner[1] == NOBODY -> i = 1
    :: else
    fi;
    if
    :: i < DEVICES -> owner[i] = OURS; served[i] = epoch
    :: else
    fi
  }
}

inline Attach() {
#ifndef NO_INTENT
  Persist(CONNECTING, NO_DEVICE);
#endif
  Connect(d);
  if
  :: d < DEVICES ->
    Persist(CONNECTED, d);
    d_step { attached = true; attach_wanted = false }  // The answer.
  :: else ->
    Persist(NONE, NO_DEVICE);
    attach_wanted = false
  fi
}

inline Detach() {
  FindDevice(d);
  if
  :: d < DEVICES ->
    Persist(DISCONNECTING, d);
    Disconnect(d)
  :: else
  fi;
  looking = false;
  // EndSessions().
  (io_epoch[0] != epoch && io_epoch[1] != epoch);
  Persist(NONE, NO_DEVICE);
  detach_wanted = false
}

inline RestoreOne() {
  FindDevice(d);
  if
  :: phase == CONNECTED && d < DEVICES -> Persist(CONNECTED, d); Reconfigure(d)
  :: phase == CONNECTED && d == NO_DEVICE ->
    // The device is gone, and its users with it.
    Connect(d);
    if
    :: d < DEVICES -> Persist(CONNECTED, d)
    :: else  // Failed, and kept.
    fi
  :: phase == CONNECTING && d < DEVICES -> Persist(CONNECTED, d); Reconfigure(d)
  :: phase == CONNECTING && d == NO_DEVICE -> Persist(NONE, NO_DEVICE)
  :: phase == DISCONNECTING ->
    if
    :: d < DEVICES -> Disconnect(d)
    :: else
    fi;
    Persist(NONE, NO_DEVICE)
  :: phase == NONE
  fi
}

active proctype Berthd() {
  byte d;
end:
  do
  :: {
#ifndef NO_FENCE
      // TakeLock(), and the images' locks: free once what the process before was writing has come to its end.
      (io_epoch[0] == 0 && io_epoch[1] == 0);
#endif
      d_step { epoch++; disconnected = false };
      RestoreOne();
      looking = false;
      atomic {
        assert(!attached || phase == CONNECTED);
        assert(!attached || (owner[0] == FOREIGN && owner[1] == FOREIGN) || disconnected ||
               (record_index < DEVICES && owner[record_index] == OURS && served[record_index] == epoch));
        // Nothing of ours is left that no record knows of.
        assert(phase != NONE || (owner[0] != OURS && owner[1] != OURS));
        ready = true
      };
endserve:
      do
      :: attach_wanted && phase == NONE -> Attach()
      :: attach_wanted && phase == CONNECTED -> d_step { attached = true; attach_wanted = false }
      :: detach_wanted && phase == CONNECTED -> Detach()
      :: detach_wanted && phase == NONE -> detach_wanted = false
      // A session reads a request and gives it to the image.
      :: atomic {
          in_flight != 0 && sent_to == epoch && io_epoch[0] != epoch && io_epoch[1] != epoch ->
          if
          :: io_epoch[0] == 0 -> io_value[0] = in_flight; io_epoch[0] = epoch
          :: io_epoch[0] != 0 && io_epoch[1] == 0 -> io_value[1] = in_flight; io_epoch[1] = epoch
          :: else
          fi
        }
      od
    } unless { atomic { crash -> crash = false; ready = false; looking = false; served[0] = 0; served[1] = 0 } }
  od
}

// What the kernel does with the write of whoever gave it: done whether he lives or not.
active [2] proctype Worker() {
  byte mine = _pid - FIRST_WORKER;
end:
  do
  :: atomic {
      io_epoch[mine] != 0 ->
      assert(io_value[mine] >= acknowledged);
      image = io_value[mine];
      if
      :: io_epoch[mine] == epoch && ready && sent_to == epoch && in_flight == io_value[mine] ->
        acknowledged = in_flight;
        in_flight = 0;
        sent_to = 0
      :: else
      fi;
      io_epoch[mine] = 0;
      io_value[mine] = 0
    }
  od
}

// The file system above, and the kernel's client: sends, and sends again over new connections.
active proctype Writer() {
  byte i;
end:
  do
  :: atomic {
      writes < 3 && in_flight == 0 && (owner[0] == OURS || owner[1] == OURS) ->
      assert(image >= acknowledged);
      writes++;
      in_flight = writes;
      sent_to = 0
    }
  :: atomic {
      in_flight != 0 && ((owner[0] == OURS && served[0] != 0 && served[0] != sent_to) ||
                         (owner[1] == OURS && served[1] != 0 && served[1] != sent_to)) ->
      if
      :: owner[0] == OURS -> i = 0
      :: else -> i = 1
      fi;
      sent_to = served[i]
    }
  od
}

active proctype Agent() {
end:
  do
  :: atomic { cycles < 2 && !attach_wanted && !detach_wanted && !attached -> cycles++; attach_wanted = true }
  :: atomic { attached && !detach_wanted && !attach_wanted -> attached = false; detach_wanted = true }
  od
}

// Another program takes free numbers and gives its own back; ours it may disconnect too, as root can.
active proctype Stranger() {
  byte i;
end:
  do
  :: atomic {
      strangers < 2 ->
      strangers++;
      if
      :: owner[0] == NOBODY -> owner[0] = FOREIGN
      :: owner[1] == NOBODY -> owner[1] = FOREIGN
      :: else
      fi
    }
  // The users get errors; what they had not been told to be written is not.
  :: atomic { strangers < 2 && !looking && owner[0] == OURS -> strangers++; Release(0) }
  :: atomic { owner[0] == FOREIGN -> owner[0] = NOBODY }
  :: atomic { owner[1] == FOREIGN -> owner[1] = NOBODY }
  od
}

active proctype Crasher() {
end:
  do
  :: atomic { crashes < 2 && !crash -> crashes++; crash = true }
  od
}
