/* liveness.pml - who is alive: client slots, generations, and what holds their kernel locks.
 *
 * PROCS processes, CLIENTS client slots.  A process attaches: it takes a slot whose lock nobody
 * holds, bumps its generation, and locks byte (slot, generation) of the liveness file through an
 * open file description of its own.  The kernel keeps that lock as long as a descriptor or a
 * mapping of that description exists in any process.  An environment does EVENTS times what it
 * likes: user code closes all descriptors of a process, C code forks behind Python's back, somebody
 * is killed, and stays a zombie, or is reaped and its pid is used again.
 *
 *   one description for each identity that was ever taken, i < taken:
 *   slot_of, gen_of[i]        the byte it locked
 *   fds, maps[i]              bits of processes that have a descriptor, a mapping of it
 *   identity[p]               what the process believes to be, description + 1; 0: nobody (the
 *                             page with MADV_WIPEONFORK reads zero), so it attaches before it acts
 *
 * INV_ALIVE   whoever acts under an identity is found alive
 * INV_DEAD    an identity whose process is gone, or was never in it, is found dead
 * INV_UNIQUE  no two living processes act under the same identity
 *
 * Mutations (each must fail): MUT_DESCRIPTOR (a descriptor keeps the lock; user code closes it),
 *   MUT_DESCRIPTOR_FORKED (it is inherited by a child), MUT_NO_DONTFORK, MUT_NO_WIPE, MUT_PID
 *   (asks for the process, not for the lock: zombies, pids used again), MUT_SAME_GENERATION,
 *   MUT_GEN_WRAP, MUT_FORK_IN_WINDOW (a fork between open and close of the descriptor),
 *   MUT_POSIX_LOCK (F_SETLK: dropped when the process closes any descriptor of the file),
 *   MUT_LOCK_LATE (acts before the lock is taken).
 */
#ifndef PROCS
#define PROCS 3
#endif
#ifndef EVENTS
#define EVENTS 4
#endif
#define CLIENTS 2
#define MOST 6 /* identities */
#define BIT(p) (1 << (p))
#ifdef MUT_GEN_WRAP
#define GENS 2
#else
#define GENS 16
#endif

hidden byte INV_ALIVE, INV_DEAD, INV_UNIQUE;

byte gen[CLIENTS];
byte taken;
byte slot_of[MOST], gen_of[MOST], fds[MOST], maps[MOST];
bool locked[MOST];         /* the lock was taken and not given up */
byte user[MOST];           /* observer: the process that took it, + 1; 0: it is gone */
bool exists[PROCS], zombie[PROCS];
bool running[PROCS];       /* its proctype has not ended yet */
byte identity[PROCS];
bool window[PROCS];        /* between open() and close() of the lock's descriptor */
byte gate;

#ifdef MUT_FORK_IN_WINDOW
#define MAY_FORK(p) true
#else
#define MAY_FORK(p) !window[p] /* LockHold keeps the GIL; fork of C code waits in an atfork handler */
#endif

/* does the kernel hold the lock of description i? */
#ifdef MUT_POSIX_LOCK
#define HELD(i) (locked[i])
#else
#define HELD(i) (locked[i] && (fds[i] || maps[i]))
#endif

/* what a waiter is told about the word of identity i: is any lock held on its byte? */
#ifdef MUT_PID
byte asked[MOST]; /* the pid that the client table names */
#define TESTED(i) (exists[asked[i]] || zombie[asked[i]])
#else
#define SAME(i, j) (slot_of[i] == slot_of[j] && gen_of[i] == gen_of[j])
#define TESTED(i) ((0 < taken && SAME(i, 0) && HELD(0)) || (1 < taken && SAME(i, 1) && HELD(1)) || \
    (2 < taken && SAME(i, 2) && HELD(2)) || (3 < taken && SAME(i, 3) && HELD(3)) || \
    (4 < taken && SAME(i, 4) && HELD(4)) || (5 < taken && SAME(i, 5) && HELD(5)))
#endif

#define SLOT_HELD(s) ((0 < taken && slot_of[0] == s && HELD(0)) || \
    (1 < taken && slot_of[1] == s && HELD(1)) || (2 < taken && slot_of[2] == s && HELD(2)) || \
    (3 < taken && slot_of[3] == s && HELD(3)) || (4 < taken && slot_of[4] == s && HELD(4)) || \
    (5 < taken && slot_of[5] == s && HELD(5)))

/* an identity that is being taken just now is not dead: nobody can hold its word yet */
#define BEING_TAKEN(i) (gate && i == taken - 1)

proctype process(byte me) {
    byte i, mine;
end:
    do
    :: atomic { exists[me] && identity[me] == 0 && taken < MOST && gate == 0 &&
            (!SLOT_HELD(0) || !SLOT_HELD(1)) -> gate = me + 1 };
        { /* V-ATTACH: generation, then the lock on it, then acting under it */
            d_step {
                mine = taken;
                taken++;
                if
                :: !SLOT_HELD(0) -> slot_of[mine] = 0
                :: else -> slot_of[mine] = 1
                fi;
#ifndef MUT_SAME_GENERATION
                gen[slot_of[mine]] = (gen[slot_of[mine]] + 1) % GENS;
#endif
                gen_of[mine] = gen[slot_of[mine]];
#ifdef MUT_PID
                asked[mine] = me;
#endif
                window[me] = true;
                fds[mine] = BIT(me) /* open, O_CLOEXEC */
            };
#ifdef MUT_LOCK_LATE
            d_step { identity[me] = mine + 1; user[mine] = me + 1 };
#endif
#if !defined(MUT_DESCRIPTOR) && !defined(MUT_DESCRIPTOR_FORKED)
            maps[mine] = BIT(me); /* mmap, MADV_DONTFORK */
#endif
            if
            :: fds[mine] & BIT(me) -> locked[mine] = true /* F_OFD_SETLK */
            :: else /* closed by user code in between: EBADF, try again */
            fi;
#if !defined(MUT_DESCRIPTOR) && !defined(MUT_DESCRIPTOR_FORKED)
            fds[mine] = fds[mine] & ~BIT(me);
#endif
            d_step {
                window[me] = false;
                if
                :: HELD(mine) -> identity[me] = mine + 1; user[mine] = me + 1
                :: else -> maps[mine] = maps[mine] & ~BIT(me)
                fi;
                gate = 0
            }
        } unless { !exists[me] };
        d_step { /* killed, or done */
            mine = 0;
            if
            :: !exists[me] && gate == me + 1 -> gate = 0
            :: else
            fi
        }
    :: atomic { exists[me] && identity[me] != 0 -> /* V-ACT: takes a lock, asks about others */
        assert(INV_ALIVE || TESTED(identity[me] - 1));
        i = 0;
        do
        :: i < PROCS ->
            assert(INV_UNIQUE || i == me || !exists[i] || identity[i] != identity[me]);
            i++
        :: else -> break
        od;
        i = 0;
        do
        :: i < taken -> /* gone: its shard must be taken over, its slot be free again */
            assert(INV_DEAD || user[i] || !TESTED(i) || BEING_TAKEN(i));
            i++
        :: else -> break
        od;
        i = 0
#ifdef MUT_POSIX_LOCK
        ; locked[identity[me] - 1] = false /* it opened the file, asked, and closed it */
#endif
        }
    :: atomic { !exists[me] -> break }
    od;
    running[me] = false
}

inline gone(p) {
    exists[p] = false;
    window[p] = false;
    identity[p] = 0;
    j = 0;
    do
    :: j < taken ->
        fds[j] = fds[j] & ~BIT(p);
        maps[j] = maps[j] & ~BIT(p);
        if
        :: user[j] == p + 1 -> user[j] = 0
        :: else
        fi;
        j++
    :: else -> break
    od;
    j = 0
}

inline forked(p, c) {
    exists[c] = true;
    running[c] = true;
    j = 0;
    do
    :: j < taken ->
        if
        :: fds[j] & BIT(p) -> fds[j] = fds[j] | BIT(c)
        :: else
        fi;
#ifdef MUT_NO_DONTFORK
        if
        :: maps[j] & BIT(p) -> maps[j] = maps[j] | BIT(c)
        :: else
        fi;
#endif
        j++
    :: else -> break
    od;
    j = 0;
#ifdef MUT_NO_WIPE
    identity[c] = identity[p];
#endif
    skip
}

inline close_all(p) { /* os.closerange(0, 65536) */
    j = 0;
    do
    :: j < taken -> fds[j] = fds[j] & ~BIT(p); j++
    :: else -> break
    od;
    j = 0
}

proctype environment() {
    byte events, j, p, c;
    do
    :: events == EVENTS -> break
    :: events < EVENTS ->
        atomic {
            events++;
            select (p : 0 .. (PROCS - 1));
            select (c : 0 .. (PROCS - 1));
            if
#ifndef MUT_DESCRIPTOR_FORKED /* that one is to fail by the fork alone */
            :: exists[p] -> close_all(p)
#endif
            :: exists[p] -> gone(p); zombie[p] = true
            :: exists[p] && p != c && !running[c] && !zombie[c] && MAY_FORK(p) ->
                forked(p, c);
                run process(c)
            :: zombie[p] -> zombie[p] = false /* reaped; its pid is free */
            :: else
            fi;
            p = 0;
            c = 0
        }
    od
}

init {
    atomic {
        exists[0] = true;
        exists[1] = true;
        running[0] = true;
        running[1] = true;
        run process(0);
        run process(1);
        run environment()
    }
}
