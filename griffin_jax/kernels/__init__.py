"""Operations that are worth their own kernels, each a public function beside a plain reference."""
