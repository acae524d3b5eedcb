/* lock.pml - the lock of a shard: holder word, hint tokens, takeover, generations.
 *
 * N client slots.  The process in a slot acquires the shard ROUNDS times, changes two words that
 * belong together (x, y) under the dirty mark, and releases.  A killer ends KILLS processes, each
 * between any two steps; the kernel drops the liveness lock of the dead in the same step.  A dead
 * process either stays away or is succeeded by another one in the same slot, with generation + 1.
 * A stopped process needs no step of its own: it is one that is not scheduled for a while.
 * A step is one access to shared memory and what is local to the process after it.
 *
 *   holder     client + 1 (bits 4-7), generation (1-3), contended (0); 0 is free
 *   sem        value of the shard's semaphore: a hint, never ownership
 *   gen, up    client table; whether the kernel holds the lock of byte (client, gen)
 *
 * Switches: NO_TIMEOUT   waits end by a token only: shows that the hints alone lose nobody
 *           GIVE_UP      a waiter may raise LockTimeout whenever it finds the holder alive
 *           LIVE         checks all_finish under weak fairness: every survivor acquires
 * Mutations (each must fail): MUT_STEAL, MUT_TOKEN_OWNS, MUT_BLIND_TAKEOVER, MUT_GEN_WRAP,
 *           MUT_SLOT_ONLY, MUT_NO_REPAIR, MUT_REPAIR_EARLY, MUT_DIRTY_EARLY,
 *           MUT_FORGET_CONTENDED (with NO_TIMEOUT), MUT_UNBOUNDED_WAIT (with LIVE).
 */
#ifndef N
#define N 3
#endif
#ifndef ROUNDS
#define ROUNDS 1
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef GENS
#ifdef MUT_GEN_WRAP
#define GENS 1 /* a slot's next process looks like its last */
#else
#define GENS 8
#endif
#endif

#define CONTENDED 1
#define WORD(client) ((((client) + 1) << 4) | (gen[client] << 1))
#define IDENTITY(word) ((word) & 254)
#define CLIENT(word) (((word) >> 4) - 1)
#define GENERATION(word) (((word) >> 1) & 7)
#ifdef MUT_SLOT_ONLY /* asks whether somebody has the slot, not which generation */
#define ALIVE(word) (up[CLIENT(word)])
#else
#define ALIVE(word) (up[CLIENT(word)] && gen[CLIENT(word)] == GENERATION(word))
#endif

/* names of invariants, so that a failure says which: always false, not part of the state */
hidden byte INV_MUTEX, INV_CLEAN, INV_OWN_WORD, INV_NOT_ROBBED, INV_SEM_BOUND;

byte holder;
byte sem;
byte gen[N];
bool up[N];
bool killed[N];
bool dying;    /* a death is one step: nobody else moves between the kill and its end */
byte insiders; /* observer, one bit a slot: its living process is between acquire and release */
byte finished; /* observer: slots whose processes have done all their rounds, or are gone */
bool dirty;    /* the shard's mark, and two words that must agree while it is off */
bit x, y;

inline enter() { /* in the same step as the instruction that took the lock */
    assert(INV_MUTEX || insiders == 0);
    insiders = insiders | (1 << me);
    seen = 0
}

proctype client(byte me) provided (!dying || killed[me]) {
    byte seen, rounds;
    bit waited;
begin:
    {
        d_step { /* attach, under the gate: liveness.pml and attach.pml look inside */
            gen[me] = (gen[me] + 1) % GENS;
            up[me] = true
        };
        do
        :: rounds == ROUNDS -> break
        :: rounds < ROUNDS ->
look:       atomic {
                seen = holder;
                if
                :: seen == 0 -> skip
                :: seen & CONTENDED -> goto wait
                :: else -> goto contend
                fi
            };
            atomic { /* L-ACQUIRE: compare-and-swap from free */
                if
                :: holder == 0 ->
#ifdef MUT_FORGET_CONTENDED
                    holder = WORD(me);
#else
                    holder = WORD(me) | waited;
#endif
                    enter();
                    goto entered
                :: else -> goto look
                fi
            };
contend:    atomic { /* L-CONTEND: compare-and-swap */
                if
                :: holder == seen -> holder = seen | CONTENDED
                :: else -> seen = 0; goto look
                fi
            };
wait:       atomic { seen = 0; waited = 1 };
            if /* L-WAIT: a token, or the end of the slice */
#ifdef MUT_TOKEN_OWNS
            :: atomic { sem > 0 -> sem--; holder = WORD(me) | CONTENDED; enter(); goto entered }
#else
            :: atomic { sem > 0 -> sem--; goto look }
#endif
#if !defined(NO_TIMEOUT) && !defined(MUT_UNBOUNDED_WAIT)
            :: atomic { true -> seen = holder }
#endif
            fi;
            atomic { /* L-ASK: what the kernel says of exactly the word that was seen */
                if
                :: seen == 0 -> goto look
                :: seen != 0 && ALIVE(seen) ->
#ifdef MUT_STEAL
                    skip
#else
                    seen = 0;
                    if
                    :: goto look
#ifdef GIVE_UP
                    :: goto round_over /* LockTimeout */
#endif
                    fi
#endif
                :: seen != 0 && !ALIVE(seen)
                fi
            };
            atomic { /* L-TAKEOVER: compare-and-swap of exactly that word */
                if
#ifdef MUT_BLIND_TAKEOVER
                :: true ->
#else
                :: holder == seen ->
#endif
                    assert(INV_NOT_ROBBED || insiders == 0);
                    holder = WORD(me) | CONTENDED;
                    enter()
#ifndef MUT_BLIND_TAKEOVER
                :: else -> seen = 0; goto look
#endif
                fi
            };
#ifndef MUT_NO_REPAIR
            if /* L-REPAIR: the mark goes last */
            :: dirty ->
#ifdef MUT_REPAIR_EARLY
                dirty = false;
                y = x
#else
                y = x;
                dirty = false
#endif
            :: else
            fi;
#endif
entered:    atomic { assert(INV_CLEAN || (!dirty && x == y)); dirty = true };
            x = 1 - x;
#ifdef MUT_DIRTY_EARLY
            dirty = false;
            y = 1 - y;
#else
            y = 1 - y;
            dirty = false;
#endif
            atomic { /* L-RELEASE: exchange with free */
                assert(INV_OWN_WORD || IDENTITY(holder) == WORD(me));
                seen = holder & CONTENDED;
                holder = 0;
                insiders = insiders & ~(1 << me)
            };
            if
            :: atomic { seen && sem == 0 -> seen = 0 }; /* L-POST: getvalue, then post: two steps, */
                sem++;                                  /* so that two posters may both see 0 */
                assert(INV_SEM_BOUND || sem <= N)
            :: atomic { !seen || sem > 0 -> seen = 0 }
            fi;
round_over: atomic { rounds++; waited = 0 }
        od
    } unless { killed[me] };
    atomic {
        seen = 0;
        waited = 0;
        if
        :: killed[me] ->
            dying = false; /* first: it is what lets this process move */
            killed[me] = false;
            if
            :: goto begin
            :: skip
            fi
        :: else -> up[me] = false /* detach */
        fi;
        rounds = 0;
        finished++
    }
}

inline kill(victim) {
    up[victim] = false; /* the kernel drops the lock with the process */
    insiders = insiders & ~(1 << victim);
    killed[victim] = true;
    kills++;
    dying = true
}

proctype killer() provided (!dying) {
    byte kills;
    do
    :: d_step { kills < KILLS && up[0] -> kill(0) }
    :: d_step { kills < KILLS && up[1] -> kill(1) }
#if N > 2
    :: d_step { kills < KILLS && up[2] -> kill(2) }
#endif
    :: break
    od;
    kills = 0
}

init {
    byte i;
    atomic {
        for (i : 0 .. (N - 1)) {
            run client(i)
        };
        i = 0;
        run killer()
    }
}

#ifdef LIVE
ltl all_finish { <> (finished == N) }
#endif
