/* attach.pml - create or attach, close, unlink, replace and sweep, under the gate.
 *
 * N processes open one name (create=None), use it, close it, LIVES times; a killer ends KILLS of
 * them between any two steps.  An inode is made under a temporary name, published with link(), and
 * carries its own gate (a kernel lock), its dead mark and its clients' kernel locks; all kernel
 * locks of a process go with it.
 *
 *   path      inode that the published name has (1..), 0: none
 *   temp[i]   inode i still has its temporary name        sems[i]   its semaphores exist
 *   gate[i]   process + 1 that holds its gate             using[i]  bits of processes that hold a
 *   dead[i]   marked dead                                           client's lock on it
 *
 * Switches: UNLINKER  process 0 calls unlink() instead of close()
 *           SWEEPER   somebody sweeps what dead creators left
 *           LEFTOVER  an unusable segment (another layout) lies there at the start
 *           LIVE      checks all_finish under weak fairness
 * Mutations (each must fail): MUT_RENAME, MUT_NO_GATE, MUT_NO_STAT, MUT_SLOT_AFTER_LINK,
 *           MUT_CLOSE_BLIND (UNLINKER), MUT_DEAD_LATE, MUT_DEAD_SPIN (LIVE), MUT_BUILD_IN_PLACE,
 *           MUT_REPLACE_BLIND (LEFTOVER), MUT_SWEEP_ORDER, MUT_SWEEP_PUBLISHED (SWEEPER).
 */
#ifndef N
#define N 2
#endif
#ifndef LIVES
#define LIVES 1
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef SWEPT
#define SWEPT 3 /* nonces that the sweeper looks at, once each */
#endif
#ifndef INODES
#define INODES 9
#endif
#ifdef UNLINKER
#define UNLINKED(ino) dead[ino] /* under an open handle, which will notice */
#else
#define UNLINKED(ino) false
#endif
#define BIT(p) (1 << (p))

hidden byte INV_NAMED, INV_BUILT, INV_SEMS, INV_NOTHING_LEFT;

byte path;
bool temp[INODES], sems[INODES], dead[INODES], built[INODES], usable[INODES];
byte gate[INODES];
byte using[INODES];
byte inodes = 1;  /* number 0 is no inode */
bool killed[N], over[N], dying;
byte finished, kills;

/* An open handle's segment is the one that the name has, unless it was unlinked under it. */
inline check_attached(ino) {
    assert(INV_BUILT || built[ino]);
    assert(INV_NAMED || UNLINKED(ino) || path == ino);
    assert(INV_SEMS || UNLINKED(ino) || sems[ino])
}

inline take_gate(ino) {
#ifdef MUT_NO_GATE
    skip
#else
    atomic { gate[ino] == 0 -> gate[ino] = me + 1 }
#endif
}

inline open_gate(ino) {
    if
    :: gate[ino] == me + 1 -> gate[ino] = 0
    :: else
    fi
}

proctype opener(byte me) provided (!dying || killed[me]) {
    byte ino, lives;
begin:
    {
        do
        :: lives == LIVES -> break
        :: lives < LIVES ->
look:       atomic { ino = path };
            if
            :: ino == 0 -> /* A-BUILD: under a temporary name, its gate held */
                d_step {
                    assert(inodes < INODES);
                    ino = inodes;
                    inodes++;
                    temp[ino] = true;
                    usable[ino] = true
                };
#ifdef MUT_BUILD_IN_PLACE
                if
                :: atomic { path == 0 -> path = ino; temp[ino] = false }
                :: path != 0 -> temp[ino] = false; ino = 0; goto look
                fi;
#endif
                if
                :: atomic { gate[ino] == 0 -> gate[ino] = me + 1 }
                :: gate[ino] != 0 -> temp[ino] = false; ino = 0; goto look /* being swept */
                fi;
                sems[ino] = true;
                built[ino] = true;
#ifndef MUT_SLOT_AFTER_LINK
                using[ino] = using[ino] | BIT(me);
#else
                gate[ino] = 0;
#endif
                atomic { /* A-LINK: link(temporary name, name) */
                    if
#if defined(MUT_RENAME)
                    :: temp[ino] -> path = ino; temp[ino] = false
#elif defined(MUT_BUILD_IN_PLACE)
                    :: true
#else
                    :: temp[ino] && path == 0 -> path = ino
#endif
#ifndef MUT_BUILD_IN_PLACE
                    :: else -> goto lost /* EEXIST: another won; ENOENT: swept */
#endif
                    fi
                };
                temp[ino] = false;
#ifdef MUT_SLOT_AFTER_LINK
                using[ino] = using[ino] | BIT(me);
#endif
                open_gate(ino);
                goto attached;
lost:           /* ours alone: nobody else has ever seen it */
                sems[ino] = false;
                d_step { using[ino] = using[ino] & ~BIT(me); temp[ino] = false };
                open_gate(ino);
                ino = 0;
                goto look
            :: else
            fi;
            take_gate(ino); /* A-ATTACH */
            if
#ifndef MUT_NO_STAT
            :: path != ino -> open_gate(ino); ino = 0; goto look
#endif
#ifdef MUT_NO_STAT
            :: usable[ino]
#else
            :: path == ino && !dead[ino] && usable[ino]
#endif
#ifdef MUT_DEAD_SPIN
            :: path == ino && dead[ino] -> open_gate(ino); ino = 0; goto look
#else
            :: path == ino && dead[ino] -> goto finish_unlink /* somebody died half-way */
#endif
            :: path == ino && !dead[ino] && !usable[ino] && using[ino] == 0 ->
#ifdef MUT_REPLACE_BLIND
                open_gate(ino);
#endif
                dead[ino] = true; /* A-REPLACE: an unusable leftover */
finish_unlink:
#ifdef MUT_REPLACE_BLIND
                path = 0;
#else
                if
                :: path == ino -> path = 0
                :: else
                fi;
#endif
                sems[ino] = false;
                open_gate(ino);
                ino = 0;
                goto look
            fi;
            using[ino] = using[ino] | BIT(me);
            open_gate(ino);
attached:   atomic { check_attached(ino) };
            atomic { check_attached(ino) }; /* and any time later, until it closes */
            take_gate(ino); /* A-CLOSE */
            if
#ifdef UNLINKER
            :: dead[ino] || (me != 0 && using[ino] != BIT(me))
            :: !dead[ino] && (me == 0 || using[ino] == BIT(me)) ->
#else
#ifdef MUT_CLOSE_BLIND
            :: using[ino] != BIT(me)
            :: using[ino] == BIT(me) ->
#else
            :: dead[ino] || using[ino] != BIT(me)
            :: !dead[ino] && using[ino] == BIT(me) ->
#endif
#endif
#ifdef MUT_DEAD_LATE
                path = 0;
                dead[ino] = true;
#else
                dead[ino] = true;
                path = 0;
#endif
                sems[ino] = false
            fi;
#if defined(UNLINKER) && defined(MUT_CLOSE_BLIND) /* the last one out, without looking whose name it is */
            if
            :: using[ino] == BIT(me) -> path = 0
            :: else
            fi;
#endif
            using[ino] = using[ino] & ~BIT(me);
            open_gate(ino);
            atomic { ino = 0; lives++ }
        od
    } unless { killed[me] };
    atomic {
        if
        :: killed[me] -> dying = false; killed[me] = false
        :: else
        fi;
        ino = 0;
        lives = 0;
        over[me] = true;
        finished++
    }
}

#ifdef SWEEPER
/* Looks for what creators left that were killed: for every nonce, its temporary name first. */
proctype sweeper() provided (!dying) {
    byte i = 1;
    bool published;
    do
    :: i > SWEPT -> break
    :: i <= SWEPT ->
#ifdef MUT_SWEEP_ORDER
        published = (path == i);
#endif
        if
        :: temp[i] ->
            if
            :: atomic { gate[i] == 0 -> gate[i] = N + 1 };
                if /* under its gate: published, only the second name is left to remove */
#ifdef MUT_SWEEP_PUBLISHED
                :: true -> sems[i] = false; temp[i] = false
#else
                :: path == i -> temp[i] = false
                :: path != i -> sems[i] = false; temp[i] = false
#endif
                fi;
                gate[i] = 0
            :: gate[i] != 0 /* its creator lives */
            fi
        :: !temp[i] && sems[i] ->
#ifndef MUT_SWEEP_ORDER
            published = (path == i);
#endif
            if
            :: published
            :: else -> sems[i] = false
            fi
        :: !temp[i] && !sems[i]
        fi;
        published = false;
        i++
    od
}
#endif

inline kill(p) {
    i = 1;
    do
    :: i < INODES ->
        if
        :: gate[i] == p + 1 -> gate[i] = 0
        :: else
        fi;
        using[i] = using[i] & ~BIT(p);
        i++
    :: else -> break
    od;
    i = 0;
    kills++;
    killed[p] = true;
    dying = true
}

proctype killer() provided (!dying) {
    byte i;
end:
    do
    :: d_step { kills < KILLS && finished < N && !over[0] -> kill(0) }
    :: d_step { kills < KILLS && finished < N && !over[1] -> kill(1) }
#if N > 2
    :: d_step { kills < KILLS && finished < N && !over[2] -> kill(2) }
#endif
    :: kills < KILLS -> break
    od
}

init {
    byte p;
    atomic {
#ifdef LEFTOVER
        path = 1; sems[1] = true; built[1] = true; inodes = 2;
#endif
        for (p : 0 .. (N - 1)) {
            run opener(p)
        };
        p = 0;
        run killer();
#ifdef SWEEPER
        run sweeper();
#endif
    };
    (finished == N);
    /* nobody was killed: nothing is left */
#ifndef SWEEPER
    atomic {
        for (p : 1 .. (INODES - 1)) {
            assert(INV_NOTHING_LEFT || kills > 0 || (path == 0 && !temp[p] && !sems[p]))
        };
        p = 0
    }
#endif
}

#ifdef LIVE
ltl all_finish { <> (finished == N) }
#endif
