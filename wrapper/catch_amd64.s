#include "textflag.h"

// Handlers of signals: the number is in DI, siginfo at SI. They run on the signal stack, without a goroutine, and do nothing
// that Go's runtime would have to know of.

TEXT ·caught(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	SUBQ $24, SP
	MOVB DI, 8(SP)
	MOVL ·caughtPipe(SB), DI
	LEAQ 8(SP), SI
	MOVL $1, DX
	MOVL $1, AX // write
	SYSCALL
	ADDQ $24, SP
	RET

TEXT ·caughtFault(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	MOVL 8(SI), AX // si_code: not above 0 if a process sent it
	CMPL AX, $0
	JGT  fault
	JMP  ·caught(SB)
fault:
	LEAQ ·goHandlers(SB), AX
	MOVL DI, CX
	MOVQ (AX)(CX*8), AX
	JMP  AX

DATA ·caughtAddress+0(SB)/8, $·caught(SB)
GLOBL ·caughtAddress(SB), NOPTR|RODATA, $8
DATA ·caughtFaultAddress+0(SB)/8, $·caughtFault(SB)
GLOBL ·caughtFaultAddress(SB), NOPTR|RODATA, $8
