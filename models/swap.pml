/* swap.pml - a swap slot: sequence word, two buffers, readers that recheck.
 *
 * A writer (the holder of the slot's lock; lock.pml) stores STORES values of two words each: fills
 * the buffer that is not current, then advances the sequence.  A killer may end it between any two
 * steps; the next one starts from what it finds, there is no repair.  A reader loads once, at any
 * moment.  The writer's stores reach others in any order between two fences, always.
 *
 * Mutations (each must fail): MUT_NO_RECHECK, MUT_ONE_BUFFER, MUT_NO_RELEASE (the sequence is
 * advanced without a release), MUT_NO_FENCE (none between the advance and the next store's first
 * byte), MUT_SEQUENCE_WRAP (a sequence that says only which buffer), MUT_EARLY_ADVANCE.
 */
#ifndef STORES
#define STORES 4
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifdef MUT_SEQUENCE_WRAP
#define NEXT(s) (((s) + 1) & 1)
#else
#define NEXT(s) ((s) + 1)
#endif
#ifdef MUT_ONE_BUFFER
#define BUFFER(s) 0
#else
#define BUFFER(s) (((s) & 1) * 2)
#endif
#define FENCE pending == 0

hidden byte INV_NO_TEAR, INV_LINEAR;

byte words[4];   /* buffer b is words 2b and 2b + 1 */
byte sequence;
byte buf[4], buf_sequence, pending; /* stores on their way: bits 0-3 the words, 4 the sequence */
byte value;      /* of the last store that was begun */
short history;   /* observer: values that were current since the reader began */
byte now, next_now;
bool reading, killed;

inline store_word(i, v) {
    d_step { buf[i] = v; pending = pending | (1 << (i)) }
}

proctype writer() {
    byte at, seq;
begin:
    {
        do
        :: value == STORES -> break
        :: value < STORES ->
            FENCE; /* of the lock's acquire, after a death */
            d_step { value++; seq = NEXT(sequence); at = BUFFER(seq) };
#ifdef MUT_EARLY_ADVANCE
            goto advance;
fill:
#endif
            store_word(at, value);
            store_word(at + 1, value);
#ifdef MUT_EARLY_ADVANCE
            goto stored;
advance:
#endif
#ifndef MUT_NO_RELEASE
            FENCE;
#endif
            d_step { /* S-ADVANCE: release store */
                buf_sequence = seq;
                pending = pending | 16;
                next_now = value;
                if
                :: reading -> history = history | (1 << value)
                :: else
                fi
            };
#ifdef MUT_EARLY_ADVANCE
            goto fill;
stored:
#endif
#ifndef MUT_NO_FENCE
            FENCE; /* S-FENCE: before the first byte of the next store */
#else
            if /* the next store follows without any order */
            :: value < STORES ->
                d_step { value++; at = BUFFER(NEXT(seq)) };
                store_word(at, value)
            :: else
            fi;
            FENCE;
#endif
            d_step { at = 0; seq = 0 }
        od
    } unless { killed };
    if
    :: killed -> atomic { killed = false; at = 0; seq = 0; goto begin }
    :: else
    fi
}

proctype memory() {
end:
    do
    :: d_step { pending & 1 -> words[0] = buf[0]; buf[0] = 0; pending = pending & ~1 }
    :: d_step { pending & 2 -> words[1] = buf[1]; buf[1] = 0; pending = pending & ~2 }
    :: d_step { pending & 4 -> words[2] = buf[2]; buf[2] = 0; pending = pending & ~4 }
    :: d_step { pending & 8 -> words[3] = buf[3]; buf[3] = 0; pending = pending & ~8 }
    :: d_step { pending & 16 ->
        sequence = buf_sequence; buf_sequence = 0; now = next_now; pending = pending & ~16 }
    od
}

proctype killer() {
    byte kills;
end:
    do
    :: atomic { kills < CRASHES && !killed -> kills++; killed = true }
    od
}

proctype reader() {
    byte seq, first, second, tries;
    atomic { reading = true; history = (1 << now) | (1 << next_now) };
again:
    seq = sequence; /* acquire */
    if /* the words in any order */
    :: first = words[BUFFER(seq)]; second = words[BUFFER(seq) + 1]
    :: second = words[BUFFER(seq) + 1]; first = words[BUFFER(seq)]
    fi;
#ifndef MUT_NO_RECHECK
    atomic { /* S-RECHECK: acquire fence, sequence */
        if
        :: sequence == seq
        :: else ->
            first = 0; second = 0; seq = 0; tries++;
            if
            :: tries > STORES -> goto over
            :: else -> goto again
            fi
        fi
    };
#endif
    atomic {
        assert(INV_NO_TEAR || first == second);
        assert(INV_LINEAR || (history & (1 << first)))
    };
over:
    atomic { reading = false; history = 0; first = 0; second = 0; seq = 0; tries = 0 }
}

init {
    atomic { run writer(); run memory(); run killer(); run reader() }
}
