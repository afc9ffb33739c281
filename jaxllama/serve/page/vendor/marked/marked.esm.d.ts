export const Lexer: any;
export const Marked: any;
