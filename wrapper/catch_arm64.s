#include "textflag.h"

// As in catch_amd64.s; the number is in R0, siginfo at R1.

TEXT ·caught(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	SUB  $16, RSP
	MOVB R0, 8(RSP)
	MOVW ·caughtPipe(SB), R0
	ADD  $8, RSP, R1
	MOVD $1, R2
	MOVD $64, R8 // write
	SVC
	ADD  $16, RSP
	RET

TEXT ·caughtFault(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	MOVW 8(R1), R3 // si_code: not above 0 if a process sent it
	CMPW $0, R3
	BGT  fault
	B    ·caught(SB)
fault:
	MOVD $·goHandlers(SB), R3
	UBFX $0, R0, $32, R4
	MOVD (R3)(R4<<3), R3
	JMP  (R3)

DATA ·caughtAddress+0(SB)/8, $·caught(SB)
GLOBL ·caughtAddress(SB), NOPTR|RODATA, $8
DATA ·caughtFaultAddress+0(SB)/8, $·caughtFault(SB)
GLOBL ·caughtFaultAddress(SB), NOPTR|RODATA, $8
