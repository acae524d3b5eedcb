/* lease.pml - once per key: the lease of a missing key, who waits for it, who takes it over.
 *
 * One key.  N clients ask for it (get_or_init): each finds the value, or takes the lease and calls
 * its factory, or waits for whoever has the lease.  A factory gives a value, or fails (FAILS times
 * at most).  A remover sets or deletes the key, as it likes, REMOVALS times.  A killer ends KILLS
 * of them, each between any two steps; a dead client stays away, or another one takes its slot
 * with the next generation.  The shard's lock is taken as given (lock.pml): the dead one's hold
 * ends with its death, what it had stored by then stays (publish.pml).  Look-ups take no lock.
 *
 *   value, lease, holder   what the key's slots say; a lease is told by its version, 0: none
 *   word, due              the shard's wake word; bit 0 of it: somebody must be woken
 *   sleeping               who waits in the kernel for the word to change, one bit a client
 *
 * Switches: NO_SLICE  waits end by being woken only: shows that wake-ups alone lose nobody who
 *                     waits for the living (KILLS=0)
 *           LIVE      checks all_finish under weak fairness: every survivor gets its value
 * Mutations (each must fail): MUT_STEAL, MUT_BLIND_TAKEOVER, MUT_LATE_STORE, MUT_KEEP_LEASE,
 *           MUT_VALUE_FIRST, MUT_UNBOUNDED_WAIT and MUT_SLOT_ONLY (with LIVE), MUT_WORD_LATE and
 *           MUT_SAME_WORD and MUT_NO_DUTY (with NO_SLICE).
 */
#ifndef N
#define N 2
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef REMOVALS
#define REMOVALS 1
#endif
#ifndef FAILS
#define FAILS 1
#endif

#define REMOVER N
#define WORD(client) ((((client) + 1) << 4) | gen[client])
#define CLIENT(holder) (((holder) >> 4) - 1)
#ifdef MUT_SLOT_ONLY /* asks whether somebody has the slot, not which generation */
#define ALIVE(holder) (up[CLIENT(holder)])
#else
#define ALIVE(holder) (up[CLIENT(holder)] && gen[CLIENT(holder)] == ((holder) & 15))
#endif

/* names of invariants, so that a failure says which: always false, not part of the state */
hidden byte INV_ONE, INV_LATE, INV_ONCE;

byte shard; /* who holds its lock, + 1; 0: nobody */
bit value;
byte lease, holder, version;
byte word, sleeping;
bit due;
byte gen[N + 1];
bool up[N + 1];
bool killed[N + 1];
bool dying;        /* a death is one step: nobody else moves between the kill and its end */
byte initialising; /* observer: living clients that have the lease and call their factories */
byte changed;      /* observer: clients since whose taking of the lease the key was set or deleted */
byte fails, finished;

inline acquire() { atomic { shard == 0 -> shard = me + 1 } }

inline release() {
    atomic { /* L-DUE */
#ifndef MUT_NO_DUTY
        duty = due;
#endif
        due = 0
    };
    shard = 0;
    if /* L-WAKE: a step of its own, that a death may leave out */
    :: duty -> d_step { sleeping = 0; duty = 0 }
    :: else
    fi
}

inline drop_lease() { /* L-DROP: the slot, then the word */
    d_step {
        initialising = initialising & ~(1 << CLIENT(holder));
        lease = 0;
        holder = 0
    };
#ifdef MUT_SAME_WORD
    due = 1
#else
    d_step { word++; due = 1 }
#endif
}

proctype client(byte me) provided (!dying || killed[me]) {
    byte seen, who, mine, before;
    bit duty;
begin:
    {
        d_step { gen[me]++; up[me] = true };
look:
#ifndef MUT_WORD_LATE
        before = word; /* L-LOOK: before the lease is looked for */
#endif
        atomic { seen = lease; who = holder };
        if
        :: value -> goto over
        :: else
        fi;
#ifdef MUT_WORD_LATE
        before = word;
#endif
#ifndef MUT_STEAL
        atomic { /* L-ASK: the kernel, about the holder that was seen */
            if
            :: seen && ALIVE(who) -> who = 0; seen = 0; goto wait
            :: else -> who = 0
            fi
        };
#endif
        acquire(); /* L-TAKE */
        if
        :: value -> release(); goto over
        :: !value && lease && /* somebody has it, and is not who was asked about */
#ifdef MUT_BLIND_TAKEOVER
            !seen
#else
            lease != seen
#endif
            -> release(); goto look
        :: else ->
            if
            :: lease -> /* L-TAKEOVER; under MUT_STEAL and MUT_BLIND_TAKEOVER also from the living */
                assert(INV_ONE || initialising == 0);
                drop_lease()
            :: else
            fi;
            d_step {
                version++;
                mine = version;
                lease = mine;
                holder = WORD(me);
                assert(INV_ONE || initialising == 0);
                initialising = initialising | (1 << me);
                changed = changed & ~(1 << me);
                seen = 0;
                before = 0
            };
            release()
        fi;
        if /* the factory */
        :: acquire(); /* L-PUBLISH */
            if
#ifdef MUT_LATE_STORE
            :: true ->
                if
                :: lease == mine -> drop_lease()
                :: else
                fi;
#else
            :: lease == mine ->
                drop_lease();
#endif
                d_step {
                    assert(INV_LATE || !(changed & (1 << me)));
                    assert(INV_ONCE || !value);
                    value = 1
                }
            :: else /* somebody has set or deleted the key: the value is its caller's only */
            fi
        :: atomic { fails < FAILS -> fails++ }; /* L-RELEASE */
            acquire();
            if
            :: lease == mine -> drop_lease()
            :: else
            fi
        fi;
        initialising = initialising & ~(1 << me);
        release();
        goto over;
wait:
        atomic { /* L-WAIT: the kernel compares, and puts to sleep */
            if
            :: word != before -> before = 0; goto look
            :: else -> sleeping = sleeping | (1 << me); before = 0
            fi
        };
        atomic {
            if
            :: !(sleeping & (1 << me))
#if !defined(NO_SLICE) && !defined(MUT_UNBOUNDED_WAIT)
            :: sleeping & (1 << me) -> sleeping = sleeping & ~(1 << me) /* the end of the slice */
#endif
            fi;
            goto look
        };
over:   skip
    } unless { killed[me] };
    atomic {
        seen = 0; who = 0; mine = 0; before = 0; duty = 0;
        if
        :: killed[me] ->
            dying = false; /* first: it is what lets this process move */
            killed[me] = false;
            if
            :: goto begin
            :: skip
            fi
        :: else -> up[me] = false
        fi;
        finished++
    }
}

inline store() { /* set, or delete: INV_LATE counts from here */
    atomic {
        if
        :: value = 1
        :: value = 0
        fi;
        changed = (1 << N) - 1
    }
}

proctype remover(byte me) provided (!dying || killed[me]) {
    byte removals;
    bit duty;
    {
        up[me] = true;
        do
        :: removals == REMOVALS -> break
        :: removals < REMOVALS ->
            acquire();
#ifdef MUT_VALUE_FIRST
            store();
#endif
#ifndef MUT_KEEP_LEASE
            if
            :: lease -> drop_lease()
            :: else
            fi;
#endif
#ifndef MUT_VALUE_FIRST
            store();
#endif
            release();
            removals++
        od
    } unless { killed[me] };
    atomic {
        dying = false;
        killed[me] = false;
        up[me] = false;
        removals = 0;
        duty = 0;
        finished++
    }
}

inline kill(victim) {
    up[victim] = false; /* the kernel drops the liveness lock with the process */
    initialising = initialising & ~(1 << victim);
    sleeping = sleeping & ~(1 << victim);
    if
    :: shard == victim + 1 -> shard = 0 /* taken over and repaired by whoever wants it next */
    :: else
    fi;
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
    :: d_step { kills < KILLS && up[REMOVER] -> kill(REMOVER) }
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
        run remover(REMOVER);
        run killer()
    }
}

#ifdef LIVE
ltl all_finish { <> (finished == N + 1) }
#endif
